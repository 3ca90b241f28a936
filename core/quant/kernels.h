// The numerics: ranges, scales, codes, packing, scores - on blocks of weights
// in memory. Two implementations give equal bits: the plain scalar reference
// (namespace reference) and Highway kernels dispatched at run time. Formulas
// are NNCF 3.4's; every fl32() below is IEEE binary32, round to nearest even,
// never fused.
//
// A block is either
//   rows:    `rows` groups of `length` contiguous weights, one scale each; or
//   columns: `rows` x `columns` weights in row-major order, one scale for each
//            column (groups run down the rows).
// Source element types: f32, f16, bf16, f64 (rounded to f32), f8e4m3, f8e5m2.
// No alignment is required of any pointer. All functions are pure and
// thread-safe. Sizes may be zero.
#ifndef OVPRESS_CORE_QUANT_KERNELS_H_
#define OVPRESS_CORE_QUANT_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/element_type.h"
#include "core/quant/scheme.h"

namespace ovpress {

// What a kernel has to know about the scheme. Cheap to copy.
struct Encoding {
  Mode mode = Mode::kInt8Asym;
  Numerics numerics = Numerics::kNumPy;
  ElementType source_type = ElementType::kF32;
  const Codebook* codebook = nullptr;  // cb4, codebook only
};

// Smallest and largest weight of each group, as f32: +inf/-inf for an empty
// one. The sign of a zero result is unspecified (no formula depends on it).
// Return value: true if every weight was finite after conversion to f32.
bool RangeOfRows(ElementType type, const void* source, size_t rows,
                 size_t length, float* lo, float* hi);
// Merges into lo/hi[columns]; initialise them to +inf/-inf before the first
// block of a group.
bool RangeOfColumns(ElementType type, const void* source, size_t rows,
                    size_t columns, float* lo, float* hi);

// From ranges to the f32 divisor of each group and, for the asymmetric modes,
// its zero point (one byte each, unpacked; pass nullptr otherwise). For nvfp4
// `step` is the group scale g; for MX modes the power of two.
void MakeSteps(const Encoding& encoding, const float* lo, const float* hi,
               size_t groups, float* step, uint8_t* zero_point);

// nvfp4: the per-tensor f32 scale G from the largest g of the tensor (the range
// of the whole tensor suffices, g being monotone in it). `group_count` chooses
// the numerics (>= 10000: OpenVINO).
float MakeSecondOrderScale(float largest_group_scale, uint64_t group_count);

// Writes the stored form of `groups` scales: f16 (2 bytes each, RNE, overflow
// gives inf), f8e8m0 or, for nvfp4, f8e4m3 of fl32(step / second_order_scale).
void StoreScales(const Encoding& encoding, const float* step, size_t groups,
                 float second_order_scale, std::byte* out);
// Packs unpacked zero points (u8 as is, u4 two a byte, low nibble first; a
// padding nibble is 0).
void StoreZeroPoints(const Encoding& encoding, const uint8_t* zero_point,
                     size_t groups, std::byte* out);

// Codes of a block, packed from out[0] bit 0 on in C order; the bits past the
// last element of the block are 0 up to a byte (u3: 3 byte) boundary. Blocks of
// a multiple of 8 elements therefore concatenate.
void EncodeRows(const Encoding& encoding, const void* source, size_t rows,
                size_t length, const float* step, const uint8_t* zero_point,
                std::byte* out);
void EncodeColumns(const Encoding& encoding, const void* source, size_t rows,
                   size_t columns, const float* step, const uint8_t* zero_point,
                   std::byte* out);

// The hot path: RangeOfRows + MakeSteps + EncodeRows in one pass while a group
// is in cache. Same bits as the three. Returns false if a weight was not
// finite (outputs are then unspecified but initialised).
bool QuantizeRows(const Encoding& encoding, const void* source, size_t rows,
                  size_t length, float* step, uint8_t* zero_point,
                  std::byte* out);

// Sums over a block for the quality report: squared error of the decompressed
// weights (code minus zero point, times the *stored* scale, in f32) and squared
// weights, each in f64 in a fixed order that does not depend on the target.
struct SquaredSums {
  double error = 0;
  double signal = 0;
};
// `scale` are the stored scales widened to f32 (see LoadScales).
SquaredSums ErrorOfRows(const Encoding& encoding, const void* source,
                        size_t rows, size_t length, const float* scale,
                        const uint8_t* zero_point, const std::byte* codes);
SquaredSums ErrorOfColumns(const Encoding& encoding, const void* source,
                           size_t rows, size_t columns, const float* scale,
                           const uint8_t* zero_point, const std::byte* codes);
// Widens what StoreScales wrote to the f32 factor of each group.
void LoadScales(const Encoding& encoding, const std::byte* stored,
                size_t groups, float second_order_scale, float* scale);

// Sensitivity for mixed precision (section 3 of the note): each row is
// quantized with int8_asym per channel (`lo`/`hi` are its range) and
// dequantized with the f32 scale; e = fl32((d - w)^2).
// ScoreRows: returns the largest over rows of the mean of e. Under kNumPy the
// mean is NumPy's f32 pairwise mean; under kOpenVino sums are taken in f64 (in
// a fixed order) and rounded to f32 after the division.
float ScoreRows(ElementType type, Numerics numerics, const void* source,
                size_t rows, size_t length, const float* lo, const float* hi);
// Adds the e of a block of rows to sum[columns]: one f32-rounded addition per
// row under kNumPy, f64 additions under kOpenVino.
void AddColumnErrors(ElementType type, Numerics numerics, const void* source,
                     size_t rows, size_t columns, const float* lo,
                     const float* hi, double* sum);
// The largest over columns of fl32(sum / rows).
float ScoreFromColumnSums(const double* sum, size_t columns, uint64_t rows);
// Adds e of one part of a row that is too long for one block, in f64.
double RowErrorSum(ElementType type, const void* source, size_t length,
                   float lo, float hi);

// NumPy's pairwise sum of a contiguous f32 array.
float PairwiseSum(const float* values, size_t count);

// Converts to f32 (exact but for f64) and back (RNE). For AWQ and tests.
void ToFloat(ElementType type, const void* source, size_t count, float* out);
void FromFloat(ElementType type, const float* source, size_t count, void* out);

// The plain scalar versions of everything above that has a vector version. The
// oracle of the tests; also used where no vector code exists.
namespace reference {
void MakeSteps(const Encoding& encoding, const float* lo, const float* hi,
               size_t groups, float* step, uint8_t* zero_point);
bool RangeOfRows(ElementType type, const void* source, size_t rows,
                 size_t length, float* lo, float* hi);
bool RangeOfColumns(ElementType type, const void* source, size_t rows,
                    size_t columns, float* lo, float* hi);
void EncodeRows(const Encoding& encoding, const void* source, size_t rows,
                size_t length, const float* step, const uint8_t* zero_point,
                std::byte* out);
void EncodeColumns(const Encoding& encoding, const void* source, size_t rows,
                   size_t columns, const float* step, const uint8_t* zero_point,
                   std::byte* out);
bool QuantizeRows(const Encoding& encoding, const void* source, size_t rows,
                  size_t length, float* step, uint8_t* zero_point,
                  std::byte* out);
float ScoreRows(ElementType type, Numerics numerics, const void* source,
                size_t rows, size_t length, const float* lo, const float* hi);
void ToFloat(ElementType type, const void* source, size_t count, float* out);
}  // namespace reference

}  // namespace ovpress

#endif  // OVPRESS_CORE_QUANT_KERNELS_H_
