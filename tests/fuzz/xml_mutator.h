// Changes an IR's XML as an attacker or a broken exporter would: numbers at
// their edges, ids and ports taken from elsewhere, layers doubled, removed or
// nested, edges bent into cycles. Pure but for the seed.
#ifndef OVPRESS_TESTS_FUZZ_XML_MUTATOR_H_
#define OVPRESS_TESTS_FUZZ_XML_MUTATOR_H_

#include <random>
#include <string>

namespace ovpress::fuzz {

// One to four changes. Returns the text as it was if it is no XML or becomes
// longer than `size_max`.
std::string MutateXml(const std::string& xml, std::minstd_rand* random,
                      size_t size_max);

}  // namespace ovpress::fuzz

#endif  // OVPRESS_TESTS_FUZZ_XML_MUTATOR_H_
