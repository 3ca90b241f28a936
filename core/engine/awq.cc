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
    const std::vector<AwqInput>& inputs, bool shared_over_batch,
    BufferPool* pool, size_t window_bytes,
    const std::function<absl::Status(uint64_t)>& advance,
    std::vector<float>* factors, std::vector<float>* inverses) {
  std::vector<float> sums;
  uint64_t count = 0;
  for (const AwqInput& input : inputs) {
    const std::vector<uint64_t>& shape = input.constant->shape;
    const size_t rank = shape.size();
    const uint64_t batches = rank == 3 ? shape[0] : 1;
    const uint64_t a = shape[rank - 2];
    const uint64_t b = shape[rank - 1];
    const bool channels_last =
        static_cast<size_t>(input.reduction_axis) == rank - 1;
    const uint64_t channels = channels_last ? b : a;
    const uint64_t sets = shared_over_batch ? 1 : batches;
    count += (channels_last ? a : b) * (shared_over_batch ? batches : 1);
    sums.resize(sets * channels, 0.0f);
    AbsoluteSums work(input.reader, *input.constant, pool, window_bytes,
                      advance);
    for (uint64_t batch = 0; batch < batches; ++batch) {
      float* const at =
          sums.data() + (shared_over_batch ? 0 : batch * channels);
      if (channels_last) {
        OVPRESS_RETURN_IF_ERROR(work.AddRows(batch * a * b, a, b, at));
      } else {
        OVPRESS_RETURN_IF_ERROR(work.AddRowSums(batch * a * b, a, b, at));
      }
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
  size_t OnlyReader(size_t layer);
  // The layer that gives the activation of a MatMul with a constant weight.
  size_t ActivationOf(size_t matmul) const;
  // True if the weight reaches its MatMul through Converts only and nobody else
  // reads it, so that scaling the constant scales just this weight.
  bool OwnsWeight(const WeightInput& input) const;
  // Index in Plan::weights if the layer's weight may be rescaled.
  size_t TargetWeight(size_t matmul) const;
  bool TryMatch(size_t first, size_t multiply, size_t target);
  // The axis of a MatMul's activation, of `rank` axes, that holds its input
  // channels.
  size_t ChannelAxis(size_t matmul, size_t rank) const;
  // Extended AWQ: all readers of a norm's output are targets; they are scaled
  // by common factors.
  void TryNorm(size_t norm);
  // The constant that a norm multiplies by, if its last axis alone holds the
  // channels and nobody else reads it; kNone otherwise.
  size_t NormWeight(size_t norm, uint64_t channels);
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
  // OnlyReader() is asked once per reader: remembered, or a layer with a
  // million of them would take time by the square.
  absl::flat_hash_map<size_t, size_t> only_reader_;
};

size_t Matcher::OnlyReader(size_t layer) {
  const auto [known, is_new] = only_reader_.try_emplace(layer, kNone);
  if (!is_new) return known->second;
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
  known->second = reader;
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
  if (constant.element_count == 0) return kNone;
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
  // Four bits cannot take a factor, nor can a type without a mantissa.
  switch (merged.type) {
    case ElementType::kF32:
    case ElementType::kF16:
    case ElementType::kBf16:
    case ElementType::kF64:
    case ElementType::kF8e4m3:
    case ElementType::kF8e5m2:
      break;
    default:
      return -1;
  }
  if (ignored_layers_.contains(first) || !OwnsWeight(input)) return -1;
  // A weight on input 1 gives the last axis of the output, one on input 0 the
  // one before.
  if ((input.port == 1) != channels_last_in_activation) return -1;
  const Layer& layer = At(first);
  const size_t rank = merged.shape.size();
  size_t axis = rank - 2;
  if (layer.type == "MatMul") {
    const bool transpose =
        layer.IsTrue(input.port == 0 ? "transpose_a" : "transpose_b");
    axis = (input.port == 1) != transpose ? rank - 1 : rank - 2;
  }
  const uint64_t channels =
      target.shape[static_cast<size_t>(weight.reduction_axes[0])];
  if (merged.shape[axis] != channels) return -1;
  if (rank == 3 && merged.shape[0] != target.shape[0]) return -1;
  return static_cast<int>(axis);
}

size_t Matcher::ChannelAxis(size_t matmul, size_t rank) const {
  const Layer& layer = At(matmul);
  if (layer.type != "MatMul" || rank < 2) return rank - 1;
  const bool is_first = input_of_layer_.at(matmul).port != 0;
  const bool transpose = layer.IsTrue(is_first ? "transpose_a" : "transpose_b");
  return transpose == is_first ? rank - 2 : rank - 1;
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
  const size_t channel_axis = ChannelAxis(target, activation_rank);
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

size_t Matcher::NormWeight(size_t norm, uint64_t channels) {
  if (At(norm).type != "Multiply") return kNone;
  for (const Producer& producer : At(norm).producers) {
    if (producer.layer == kNone ||
        plan_->graph.from_parameter[producer.layer]) {
      continue;
    }
    size_t at = producer.layer;
    if (OnlyReader(at) != norm) return kNone;
    while (At(at).type == "Convert") {
      const size_t next = At(at).producers[0].layer;
      if (next == kNone || OnlyReader(next) != at) return kNone;
      at = next;
    }
    if (At(at).type != "Const") return kNone;
    const Constant& constant = model_.constants()[At(at).constant];
    const bool is_vector = !constant.shape.empty() &&
                           constant.shape.back() == channels &&
                           constant.element_count == channels;
    // The weights of MatMuls are targets, never norms.
    if (!is_vector || (constant.type != ElementType::kF32 &&
                       constant.type != ElementType::kF16 &&
                       constant.type != ElementType::kBf16)) {
      return kNone;
    }
    for (const PlannedWeight& weight : plan_->weights) {
      if (weight.constant == At(at).constant) return kNone;
    }
    return At(at).constant;
  }
  return kNone;
}

void Matcher::TryNorm(size_t norm) {
  const Layer& layer = At(norm);
  // A norm ends with its weight or scale (Multiply) or its bias (Add). Other
  // such nodes are as good: the function is kept behind any node.
  if ((layer.type != "Multiply" && layer.type != "Add") ||
      layer.producers.size() != 2 || layer.outputs.size() != 1 ||
      !plan_->graph.from_parameter[norm]) {
    return;
  }
  const Port& output = layer.outputs[0];
  const size_t rank = output.dims.size();
  if (rank < 2 || !IsFloatingPoint(output.type)) return;

  std::vector<size_t> targets;
  std::vector<size_t> layers;
  uint64_t channels = 0;
  for (const Consumer& consumer : layer.consumers[0]) {
    const size_t reader = consumer.layer;
    if (!plan_->graph.alive[reader] || At(reader).type == "ShapeOf") continue;
    if (At(reader).type != "MatMul" || matched_.contains(reader)) return;
    const size_t index = TargetWeight(reader);
    if (index == kNone) return;
    const PlannedWeight& weight = plan_->weights[index];
    const Constant& constant = model_.constants()[weight.constant];
    if (constant.shape.size() != 2 ||
        consumer.input ==
            static_cast<size_t>(input_of_layer_.at(reader).port) ||
        ChannelAxis(reader, rank) != rank - 1) {
      return;
    }
    const uint64_t its_channels =
        constant.shape[static_cast<size_t>(weight.reduction_axes[0])];
    if (channels != 0 && its_channels != channels) return;
    channels = its_channels;
    targets.push_back(index);
    layers.push_back(reader);
  }
  if (targets.empty() || channels == 0 ||
      (output.dims[rank - 1] != static_cast<int64_t>(channels) &&
       output.dims[rank - 1] != -1)) {
    return;
  }
  AwqScale scale;
  scale.weight = targets[0];
  scale.together.assign(targets.begin() + 1, targets.end());
  scale.source_layer = norm;
  scale.merged_constant = NormWeight(norm, channels);
  if (scale.merged_constant != kNone) {
    scale.merged_axis = static_cast<int>(
        model_.constants()[scale.merged_constant].shape.size() - 1);
  } else {
    scale.multiply_type = output.type;
    scale.multiply_shape.assign(rank, 1);
    scale.multiply_shape[rank - 1] = channels;
  }
  for (const size_t reader : layers) matched_[reader] = true;
  plan_->awq.push_back(std::move(scale));
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
  if (plan_->options.awq_extended) {
    for (const size_t norm : order) TryNorm(norm);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MatchAwq(const Model& model, Plan* plan) {
  return Matcher(model, plan).Run();
}

}  // namespace ovpress
