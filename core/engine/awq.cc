#include "core/engine/awq.h"

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_map.h"
#include "core/base/status_macros.h"
#include "core/engine/plan.h"
#include "core/quant/kernels.h"

namespace ovpress {

namespace {

constexpr float kEps = 1.1920929e-07f;  // f32 machine epsilon

// Sums of |W| over all axes but the input channel's (and the batch's).
class AbsoluteSums {
 public:
  AbsoluteSums(const WeightReader& reader, const Constant& constant,
               BufferPool* pool, size_t window_bytes,
               const std::function<absl::Status(uint64_t)>& advance)
      : reader_(reader),
        constant_(constant),
        pool_(pool),
        window_(window_bytes),
        advance_(advance) {}

  // rows x columns from element `first`: adds each row to sums[columns].
  absl::Status AddRows(uint64_t first, uint64_t rows, uint64_t columns,
                       float* sums) {
    const uint64_t step = std::max<uint64_t>(
        1, window_ / std::max<uint64_t>(1, columns * sizeof(float)));
    std::vector<float> values(step * columns);
    for (uint64_t row = 0; row < rows; row += step) {
      const uint64_t take = std::min(step, rows - row);
      OVPRESS_RETURN_IF_ERROR(
          Load(first + row * columns, take * columns, values.data()));
      for (uint64_t i = 0; i < take; ++i) {
        const float* line = values.data() + i * columns;
        for (uint64_t k = 0; k < columns; ++k) sums[k] += line[k];
      }
    }
    return absl::OkStatus();
  }

  // rows x length from element `first`: adds each row's pairwise sum to
  // sums[row].
  absl::Status AddRowSums(uint64_t first, uint64_t rows, uint64_t length,
                          float* sums) {
    const uint64_t step = std::max<uint64_t>(
        1, window_ / std::max<uint64_t>(1, length * sizeof(float)));
    std::vector<float> values(step * length);
    for (uint64_t row = 0; row < rows; row += step) {
      const uint64_t take = std::min(step, rows - row);
      OVPRESS_RETURN_IF_ERROR(
          Load(first + row * length, take * length, values.data()));
      for (uint64_t i = 0; i < take; ++i) {
        sums[row + i] += PairwiseSum(values.data() + i * length, length);
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Load(uint64_t first, uint64_t count, float* out) {
    const uint64_t bytes = count * reader_.element_size();
    ScopedBuffer raw(pool_, bytes);
    OVPRESS_RETURN_IF_ERROR(reader_.Read(first, count, raw.data()));
    ToFloat(constant_.type, raw.data(), count, out);
    for (uint64_t i = 0; i < count; ++i) out[i] = std::fabs(out[i]);
    return advance_(0);
  }

  const WeightReader& reader_;
  const Constant& constant_;
  BufferPool* const pool_;
  const size_t window_;
  const std::function<absl::Status(uint64_t)>& advance_;
};

}  // namespace

absl::Status ComputeAwqFactors(
    const WeightReader& reader, const Constant& constant, int reduction_axis,
    bool shared_over_batch, BufferPool* pool, size_t window_bytes,
    const std::function<absl::Status(uint64_t)>& advance,
    std::vector<float>* factors, std::vector<float>* inverses) {
  const std::vector<uint64_t>& shape = constant.shape;
  const size_t rank = shape.size();
  const uint64_t batches = rank == 3 ? shape[0] : 1;
  const uint64_t a = shape[rank - 2];
  const uint64_t b = shape[rank - 1];
  const bool channels_last = static_cast<size_t>(reduction_axis) == rank - 1;
  const uint64_t channels = channels_last ? b : a;
  const uint64_t sets = shared_over_batch ? 1 : batches;
  uint64_t count = channels_last ? a : b;
  if (shared_over_batch) count *= batches;
  std::vector<float> sums(sets * channels, 0.0f);
  AbsoluteSums work(reader, constant, pool, window_bytes, advance);
  for (uint64_t batch = 0; batch < batches; ++batch) {
    float* const at = sums.data() + (shared_over_batch ? 0 : batch * channels);
    if (channels_last) {
      OVPRESS_RETURN_IF_ERROR(work.AddRows(batch * a * b, a, b, at));
    } else {
      OVPRESS_RETURN_IF_ERROR(work.AddRowSums(batch * a * b, a, b, at));
    }
  }
  factors->resize(sums.size());
  inverses->resize(sums.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    // NumPy divides in f64 (its count is an int64) and rounds to f32.
    const float mean = static_cast<float>(static_cast<double>(sums[i]) /
                                          static_cast<double>(count));
    (*factors)[i] = 1.0f / std::max(mean, kEps);
    (*inverses)[i] = 1.0f / (*factors)[i];
  }
  return absl::OkStatus();
}

namespace {

bool IsAtomicActivation(absl::string_view type) {
  for (const absl::string_view name :
       {"Relu", "Clamp", "Elu", "PRelu", "Sigmoid", "HSigmoid", "HardSigmoid",
        "Swish", "HSwish", "Selu"}) {
    if (type == name) return true;
  }
  return false;
}

class Matcher {
 public:
  Matcher(const Model& model, Plan* plan) : model_(model), plan_(plan) {
    for (size_t i = 0; i < plan->weights.size(); ++i) {
      if (plan->weights[i].reason == "ignored" &&
          !plan->weights[i].config.has_value()) {
        ignored_layers_[plan->weights[i].layer] = true;
      }
      if (plan->weights[i].config.has_value()) {
        weight_of_layer_[plan->weights[i].layer] = i;
      }
    }
    for (const WeightInput& input : plan->graph.weights) {
      input_of_layer_[input.layer] = input;
    }
  }

  absl::Status Run();

 private:
  const Layer& At(size_t layer) const { return model_.layers()[layer]; }
  // NNCF's list; Gelu is as good, but NNCF has no pattern with it.
  bool IsActivation(size_t layer) const {
    const absl::string_view type = NodeTypeName(At(layer));
    return IsAtomicActivation(type) ||
           (plan_->options.awq_extended && type == "Gelu");
  }
  bool IsMatMul(size_t layer) const {
    return At(layer).type == "MatMul" || At(layer).type == "GroupedMatMul";
  }
  // The only reader of all outputs of `layer`, ShapeOf aside (it does not see
  // values), reading it exactly once; kNone if there is no such.
  size_t OnlyReader(size_t layer) const;
  // The layer that gives the activation of a MatMul with a constant weight.
  size_t ActivationOf(size_t matmul) const;
  // True if the weight reaches its MatMul through Converts only and nobody else
  // reads it, so that scaling the constant scales just this weight.
  bool OwnsWeight(const WeightInput& input) const;
  // Index in Plan::weights if the layer's weight may be rescaled.
  size_t TargetWeight(size_t matmul) const;
  bool TryMatch(size_t first, size_t multiply, size_t target);
  // The output axis of `first`'s constant if its output channels are the
  // target's input channels; -1 otherwise.
  int MergeAxis(size_t first, const PlannedWeight& weight,
                bool channels_last_in_activation) const;

  const Model& model_;
  Plan* const plan_;
  absl::flat_hash_map<size_t, bool> ignored_layers_;
  absl::flat_hash_map<size_t, size_t> weight_of_layer_;
  absl::flat_hash_map<size_t, WeightInput> input_of_layer_;
  absl::flat_hash_map<size_t, bool> matched_;
};

size_t Matcher::OnlyReader(size_t layer) const {
  size_t reader = kNone;
  for (const std::vector<Consumer>& consumers : At(layer).consumers) {
    for (const Consumer& consumer : consumers) {
      if (!plan_->graph.alive[consumer.layer] ||
          At(consumer.layer).type == "ShapeOf") {
        continue;
      }
      if (reader != kNone) return kNone;
      reader = consumer.layer;
    }
  }
  return reader;
}

bool Matcher::OwnsWeight(const WeightInput& input) const {
  size_t at = At(input.layer).producers[static_cast<size_t>(input.port)].layer;
  for (;;) {
    size_t readers = 0;
    for (const std::vector<Consumer>& consumers : At(at).consumers) {
      for (const Consumer& consumer : consumers) {
        readers += plan_->graph.alive[consumer.layer];
      }
    }
    if (readers != 1) return false;
    if (At(at).type == "Const") return true;
    if (At(at).type != "Convert") return false;
    at = At(at).producers[0].layer;
  }
}

size_t Matcher::ActivationOf(size_t matmul) const {
  const auto found = input_of_layer_.find(matmul);
  if (found == input_of_layer_.end()) return kNone;
  const size_t port = found->second.port == 0 ? 1 : 0;
  const Layer& layer = At(matmul);
  return port < layer.producers.size() ? layer.producers[port].layer : kNone;
}

size_t Matcher::TargetWeight(size_t matmul) const {
  const auto found = weight_of_layer_.find(matmul);
  if (found == weight_of_layer_.end()) return kNone;
  const PlannedWeight& weight = plan_->weights[found->second];
  if (BitsOf(plan_->options, weight.config->mode) > 4) return kNone;
  const Constant& constant = model_.constants()[weight.constant];
  if (constant.shape.size() < 2 || constant.shape.size() > 3 ||
      weight.reduction_axes.size() != 1) {
    return kNone;
  }
  if (!OwnsWeight(input_of_layer_.at(matmul))) return kNone;
  return found->second;
}

int Matcher::MergeAxis(size_t first, const PlannedWeight& weight,
                       bool channels_last_in_activation) const {
  const auto found = input_of_layer_.find(first);
  if (found == input_of_layer_.end() || !IsMatMul(first)) return -1;
  const WeightInput& input = found->second;
  const Constant& merged = model_.constants()[input.constant];
  const Constant& target = model_.constants()[weight.constant];
  if (merged.shape.size() != target.shape.size()) return -1;
  if (ignored_layers_.contains(first) || !OwnsWeight(input)) return -1;
  // A weight on input 1 gives the last axis of the output, one on input 0 the
  // one before.
  if ((input.port == 1) != channels_last_in_activation) return -1;
  const Layer& layer = At(first);
  const size_t rank = merged.shape.size();
  size_t axis = rank - 2;
  if (layer.type == "MatMul") {
    const bool transpose =
        layer.Attribute(input.port == 0 ? "transpose_a" : "transpose_b") ==
        "true";
    axis = (input.port == 1) != transpose ? rank - 1 : rank - 2;
  }
  const uint64_t channels =
      target.shape[static_cast<size_t>(weight.reduction_axes[0])];
  if (merged.shape[axis] != channels) return -1;
  if (rank == 3 && merged.shape[0] != target.shape[0]) return -1;
  return static_cast<int>(axis);
}

bool Matcher::TryMatch(size_t first, size_t multiply, size_t target) {
  const size_t index = TargetWeight(target);
  if (index == kNone || matched_.contains(target)) return false;
  const PlannedWeight& weight = plan_->weights[index];
  const Constant& constant = model_.constants()[weight.constant];
  const WeightInput& input = input_of_layer_.at(target);
  const Layer& layer = At(target);
  const size_t activation_port = input.port == 0 ? 1 : 0;
  const Producer& producer = layer.producers[activation_port];
  const Port& activation = At(producer.layer).outputs[producer.output];
  const size_t activation_rank = activation.dims.size();
  if (activation_rank == 0 || producer.output != 0) return false;
  // Which axis of the activation holds the input channels.
  size_t channel_axis = activation_rank - 1;
  if (layer.type == "MatMul" && activation_rank > 1) {
    const bool transpose =
        layer.Attribute(activation_port == 0 ? "transpose_a" : "transpose_b") ==
        "true";
    if (transpose == (activation_port == 0)) channel_axis = activation_rank - 2;
  }
  const uint64_t channels =
      constant.shape[static_cast<size_t>(weight.reduction_axes[0])];

  AwqScale scale;
  scale.weight = index;
  scale.source_layer = first;
  scale.shared_over_batch = constant.shape.size() == 3 && activation_rank != 3;
  const int merge_axis =
      multiply != kNone
          ? MergeAxis(first, weight, channel_axis + 1 == activation_rank)
          : -1;
  if (merge_axis >= 0) {
    scale.merged_constant = input_of_layer_.at(first).constant;
    scale.merged_axis = merge_axis;
  } else {
    const Port& source = At(first).outputs[0];
    // The source may broadcast into the Multiply behind it, but must not be
    // broadcast along the channels.
    if (source.dims.size() != activation_rank ||
        (source.dims[channel_axis] != static_cast<int64_t>(channels) &&
         source.dims[channel_axis] != -1)) {
      return false;
    }
    scale.multiply_type = source.type;
    if (!IsFloatingPoint(source.type)) return false;
    scale.multiply_shape.assign(activation_rank, 1);
    scale.multiply_shape[channel_axis] = channels;
    if (constant.shape.size() == 3 && !scale.shared_over_batch) {
      if (channel_axis == 0) return false;
      scale.multiply_shape[0] = constant.shape[0];
    }
  }
  matched_[target] = true;
  plan_->awq.push_back(std::move(scale));
  return true;
}

absl::Status Matcher::Run() {
  const std::vector<size_t>& order = plan_->graph.order;
  // MatMul -> Multiply -> MatMul, then Act -> Multiply -> MatMul.
  for (const bool activation : {false, true}) {
    for (const size_t target : order) {
      if (!IsMatMul(target)) continue;
      const size_t multiply = ActivationOf(target);
      if (multiply == kNone || At(multiply).type != "Multiply" ||
          OnlyReader(multiply) != target) {
        continue;
      }
      for (const Producer& producer : At(multiply).producers) {
        const size_t first = producer.layer;
        if (first == kNone || OnlyReader(first) != multiply) continue;
        const bool fits = activation ? IsActivation(first) : IsMatMul(first);
        if (fits && plan_->graph.from_parameter[first] &&
            TryMatch(first, multiply, target)) {
          break;
        }
      }
    }
  }
  // Act -> MatMul.
  for (const size_t target : order) {
    if (!IsMatMul(target)) continue;
    const size_t first = ActivationOf(target);
    if (first == kNone || !IsActivation(first) || OnlyReader(first) != target) {
      continue;
    }
    TryMatch(first, kNone, target);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MatchAwq(const Model& model, Plan* plan) {
  return Matcher(model, plan).Run();
}

}  // namespace ovpress
