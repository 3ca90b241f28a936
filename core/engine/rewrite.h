// Writes the XML of the compressed model: NNCF's graph around each compressed
// weight (openvino_backend.py), everything else as it was.
#ifndef OVPRESS_CORE_ENGINE_REWRITE_H_
#define OVPRESS_CORE_ENGINE_REWRITE_H_

#include <string>

#include "core/engine/layout.h"
#include "core/engine/plan.h"
#include "core/ir/model.h"

namespace ovpress {

std::string RewriteXml(const Model& model, const Plan& plan,
                       const Layout& layout);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_REWRITE_H_
