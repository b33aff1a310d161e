// The primitive ragged operators: bodies shared by all devices, gradients, registrations. Every operator is linear, and
// its gradient is another one of them, called through the dispatcher; hence derivatives of any order, forward mode,
// torch.func and tracing.
#include <ATen/Dispatch_v2.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/masked_fill.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <tuple>

#include "common/check.h"
#include "common/run.h"
#include "ragged/ragged.h"

namespace raggedbev::ragged {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- arguments
// -------------------------------------------------------------------------------------------------------

// A tensor whose rows can be read as they stand: elements of a row adjacent.
Tensor with_adjacent_elements(const Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

// Of `tensor` [B, O, N, I].
Rows rows_of(const Tensor& tensor) {
  const int64_t bytes = tensor.element_size();
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.stride(0) * bytes, tensor.stride(1) * bytes,
          tensor.stride(2) * bytes};
}

Integers integers_of(const Tensor& contiguous) {
  return {contiguous.const_data_ptr(), contiguous.scalar_type() == at::kLong};
}

// Sizes or indices, checked and contiguous, which live as long as this does.
class IntegerArgument {
 public:
  IntegerArgument(const char* name, const OptionalTensor& integers, int64_t dims, const char* shape,
                  const Tensor& data) {
    if (!integers.has_value()) return;
    check_integers(name, *integers, dims, shape, data);
    tensor_ = integers->contiguous();
  }

  bool given() const { return tensor_.defined(); }
  int64_t size(int64_t dim) const { return tensor_.size(dim); }
  Integers integers() const { return given() ? integers_of(tensor_) : Integers{nullptr, false}; }
  Sizes sizes(int64_t most) const { return {integers(), most}; }

 private:
  Tensor tensor_;
};

bool is_representable(const at::Scalar& value, at::ScalarType type) {
  if (at::isComplexType(type)) return true;
  if (value.isComplex()) return false;
  if (at::isFloatingType(type) || !value.isFloatingPoint()) return true;
  const double number = value.toDouble();
  return std::isfinite(number) && std::trunc(number) == number;
}

Pattern pattern_of(const char* name, const at::Scalar& value, at::ScalarType type) {
  Pattern pattern = {};
  if (value.isIntegral(/*includeBool=*/true) && value.toLong() == 0) return pattern;
  TORCH_CHECK_VALUE(is_representable(value, type), name, " must be representable in ", name_of(type), ", got ", value);
  AT_DISPATCH_V2(type, "ragged filler", AT_WRAP([&] {
                   const scalar_t element = value.to<scalar_t>();
                   for (size_t i = 0; i < sizeof(pattern.bytes); i += sizeof(element)) {
                     std::memcpy(pattern.bytes + i, &element, sizeof(element));
                   }
                 }),
                 AT_EXPAND(AT_ALL_TYPES_AND_COMPLEX), at::kHalf, at::kBFloat16, at::kBool);
  return pattern;
}

Type type_of(const char* name, at::ScalarType type) {
  switch (type) {
    case at::kHalf:
      return Type::kHalf;
    case at::kBFloat16:
      return Type::kBFloat16;
    case at::kFloat:
      return Type::kFloat;
    case at::kDouble:
      return Type::kDouble;
    case at::kChar:
      return Type::kInt8;
    case at::kShort:
      return Type::kInt16;
    case at::kInt:
      return Type::kInt32;
    case at::kLong:
      return Type::kInt64;
    case at::kByte:
      return Type::kUInt8;
    case at::kBool:
      return Type::kBool;
    default:
      TORCH_CHECK_TYPE(false, name, " must have a floating-point, integer or bool type, got ", name_of(type));
  }
}

// Real and imaginary parts as neighbouring elements: [..., I] complex as [..., 2 * I] real.
Tensor as_real(const Tensor& complex) {
  return at::view_as_real(complex.resolve_conj()).flatten(-2);
}

Tensor as_complex(const Tensor& real) {
  return at::view_as_complex(real.unflatten(-1, {-1, 2}));
}

// ---- bodies
// ----------------------------------------------------------------------------------------------------------

Tensor gather(const Tensor& data, const Tensor& indices, const OptionalTensor& num_indices,
              const OptionalTensor& num_rows, const at::Scalar& filler) {
  check_dims("data", data, 4, "B, O, N, I");
  const IntegerArgument index("indices", indices, 2, "B, K", data);
  const IntegerArgument counts("num_indices", num_indices, 1, "B", data), rows("num_rows", num_rows, 1, "B", data);
  const Pattern pattern = pattern_of("filler", filler, data.scalar_type());
  const c10::OptionalDeviceGuard guard(data.device());
  const int64_t num = index.size(1);
  Tensor out = at::empty({data.size(0), data.size(1), num, data.size(3)}, data.options());
  if (out.numel() == 0) return out;

  const Tensor input = with_adjacent_elements(data.resolve_conj());
  const Entries entries{index.integers(), num, counts.sizes(num), rows.sizes(data.size(2))};
  run(GatherParams{rows_of(input), entries, pattern, static_cast<char*>(out.mutable_data_ptr()), data.size(0),
                   data.size(1), data.size(3) * data.element_size()},
      out);
  return out;
}

Tensor scatter_add(const Tensor& values, const Tensor& indices, const OptionalTensor& num_indices,
                   const OptionalTensor& num_rows, int64_t num) {
  check_dims("values", values, 4, "B, O, K, I");
  if (values.is_complex()) return as_complex(scatter_add(as_real(values), indices, num_indices, num_rows, num));
  TORCH_CHECK_TYPE(values.is_floating_point(), "values must have a floating-point type, got ",
                   name_of(values.scalar_type()));
  check_not_negative("num", num);
  const IntegerArgument index("indices", indices, 2, "B, K", values);
  TORCH_CHECK_VALUE(index.size(1) == values.size(2), "indices must be [B, K = ", values.size(2), "], got ",
                    Shape{indices.sizes()});
  const IntegerArgument counts("num_indices", num_indices, 1, "B", values), rows("num_rows", num_rows, 1, "B", values);
  const c10::OptionalDeviceGuard guard(values.device());
  if (values.numel() == 0) return at::zeros({values.size(0), values.size(1), num, values.size(3)}, values.options());
  Tensor out = at::empty({values.size(0), values.size(1), num, values.size(3)}, values.options());
  if (out.numel() == 0) return out;

  const Tensor input = with_adjacent_elements(values);
  const Entries entries{index.integers(), index.size(1), counts.sizes(index.size(1)), rows.sizes(num)};
  run(ScatterAddParams{rows_of(input), entries, out.mutable_data_ptr(), values.size(0), values.size(1), num,
                       values.size(3), type_of("values", values.scalar_type())},
      out);
  return out;
}

std::tuple<Tensor, Tensor> write(const Tensor& source, const OptionalTensor& source_indices,
                                 const Tensor& target_indices, const OptionalTensor& num_indices,
                                 const OptionalTensor& num_source, const OptionalTensor& num_targets_valid,
                                 const OptionalTensor& into, int64_t num_targets, const at::Scalar& filler) {
  check_dims("source", source, 3, "B, S, I");
  check_not_negative("num_targets", num_targets);
  const IntegerArgument from("source_indices", source_indices, 2, "B, K", source);
  const IntegerArgument to("target_indices", target_indices, 2, "B, K", source);
  TORCH_CHECK_VALUE(!from.given() || from.size(1) == to.size(1), "source_indices must be [B, K = ", to.size(1),
                    "] like target_indices, got ", Shape{source_indices->sizes()});
  const IntegerArgument counts("num_indices", num_indices, 1, "B", source);
  const IntegerArgument source_rows("num_source", num_source, 1, "B", source);
  const IntegerArgument target_rows("num_targets_valid", num_targets_valid, 1, "B", source);
  const std::array<int64_t, 3> shape{source.size(0), num_targets, source.size(2)};
  if (into.has_value()) {
    TORCH_CHECK_TYPE(into->scalar_type() == source.scalar_type(), "into must be ", name_of(source.scalar_type()),
                     " like source, got ", name_of(into->scalar_type()));
    TORCH_CHECK_VALUE(into->sizes() == at::IntArrayRef(shape), "into must be ", Shape{shape}, ", got ",
                      Shape{into->sizes()});
    TORCH_CHECK_VALUE(into->device() == source.device(), "into must be on ", source.device(), ", got ", into->device());
  }
  const Pattern pattern = pattern_of("filler", filler, source.scalar_type());
  const c10::OptionalDeviceGuard guard(source.device());
  Tensor out = at::empty(shape, source.options());
  Tensor entry = at::empty({shape[0], shape[1]}, source.options().dtype(at::kLong));
  if (entry.numel() == 0) return {out, entry};

  const Tensor input = with_adjacent_elements(source.resolve_conj().unsqueeze(1));
  const Tensor base = into.has_value() ? with_adjacent_elements(into->resolve_conj().unsqueeze(1)) : Tensor();
  const Entries targets{to.integers(), to.size(1), counts.sizes(to.size(1)), target_rows.sizes(num_targets)};
  run(WriteParams{rows_of(input), from.integers(), source_rows.sizes(source.size(1)), targets,
                  base.defined() ? rows_of(base) : Rows{nullptr, 0, 0, 0}, pattern,
                  static_cast<char*>(out.mutable_data_ptr()), entry.mutable_data_ptr<int64_t>(), shape[0], num_targets,
                  shape[2] * source.element_size()},
      out);
  return {out, entry};
}

Tensor mask_from_indices(const Tensor& indices, const OptionalTensor& num_indices, int64_t num) {
  check_dims("indices", indices, 2, "B, K");
  check_not_negative("num", num);
  const IntegerArgument index("indices", indices, 2, "B, K", indices);
  const IntegerArgument counts("num_indices", num_indices, 1, "B", indices);
  const c10::OptionalDeviceGuard guard(indices.device());
  Tensor mask = at::empty({indices.size(0), num}, indices.options().dtype(at::kBool));
  if (mask.numel() == 0) return mask;

  const Entries entries{index.integers(), index.size(1), counts.sizes(index.size(1)), Sizes{{nullptr, false}, num}};
  run(MaskFromIndicesParams{entries, mask.mutable_data_ptr<bool>(), indices.size(0), num}, mask);
  return mask;
}

std::tuple<Tensor, Tensor> indices_from_mask(const Tensor& mask, const OptionalTensor& num_rows, int64_t max_num) {
  check_dims("mask", mask, 2, "B, N");
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, "mask must be bool, got ", name_of(mask.scalar_type()));
  check_not_negative("max_num", max_num);
  const IntegerArgument rows("num_rows", num_rows, 1, "B", mask);
  const c10::OptionalDeviceGuard guard(mask.device());
  Tensor indices = at::empty({mask.size(0), max_num}, mask.options().dtype(at::kLong));
  Tensor counts = at::empty({mask.size(0)}, indices.options());
  if (counts.numel() == 0) return {indices, counts};

  const Tensor input = mask.contiguous();
  run(IndicesFromMaskParams{input.const_data_ptr<bool>(), rows.sizes(mask.size(1)), indices.mutable_data_ptr<int64_t>(),
                            counts.mutable_data_ptr<int64_t>(), mask.size(0), mask.size(1), max_num},
      mask);
  return {indices, counts};
}

Tensor fill(const Tensor& data, const Tensor& sizes, const at::Scalar& value) {
  check_dims("data", data, 4, "B, O, N, I");
  const IntegerArgument size("sizes", sizes, 1, "B", data);
  const Pattern pattern = pattern_of("value", value, data.scalar_type());
  const c10::OptionalDeviceGuard guard(data.device());
  Tensor out = at::empty(data.sizes(), data.options());
  if (out.numel() == 0) return out;

  const Tensor input = with_adjacent_elements(data.resolve_conj());
  run(FillParams{rows_of(input), size.sizes(data.size(2)), pattern, static_cast<char*>(out.mutable_data_ptr()),
                 data.size(0), data.size(1), data.size(2), data.size(3) * data.element_size()},
      out);
  return out;
}

Tensor sum(const Tensor& data, const Tensor& sizes) {
  check_dims("data", data, 4, "B, O, N, I");
  if (data.is_complex()) return as_complex(sum(as_real(data), sizes));
  const Type type = type_of("data", data.scalar_type());
  const IntegerArgument size("sizes", sizes, 1, "B", data);
  const c10::OptionalDeviceGuard guard(data.device());
  const at::ScalarType half_as_float = at::isReducedFloatingType(data.scalar_type()) ? at::kFloat : data.scalar_type();
  const at::ScalarType wide = data.is_floating_point() ? half_as_float : at::kLong;
  Tensor out = at::empty({data.size(0), data.size(1), data.size(3)}, data.options().dtype(wide));
  if (out.numel() == 0) return out;

  const Tensor input = with_adjacent_elements(data);
  run(SumParams{rows_of(input), size.sizes(data.size(2)), out.mutable_data_ptr(), data.size(0), data.size(1),
                data.size(3), type},
      out);
  return out;
}

Tensor expand(const Tensor& values, const Tensor& sizes, int64_t num) {
  check_dims("values", values, 3, "B, O, I");
  check_not_negative("num", num);
  const IntegerArgument size("sizes", sizes, 1, "B", values);
  const c10::OptionalDeviceGuard guard(values.device());
  Tensor out = at::empty({values.size(0), values.size(1), num, values.size(2)}, values.options());
  if (out.numel() == 0) return out;

  const Tensor input = with_adjacent_elements(values.resolve_conj().unsqueeze(2));
  run(ExpandParams{rows_of(input), size.sizes(num), static_cast<char*>(out.mutable_data_ptr()), values.size(0),
                   values.size(1), num, values.size(2) * values.element_size()},
      out);
  return out;
}

void check_sample(const Tensor& sample, int64_t number, const Tensor& out) {
  TORCH_CHECK_VALUE(sample.scalar_type() == out.scalar_type() && sample.device() == out.device(), "sample ", number,
                    " must be ", name_of(out.scalar_type()), " on ", out.device(), " like out, got ",
                    name_of(sample.scalar_type()), " on ", sample.device());
  const bool fits =
      sample.dim() == out.dim() - 1 && sample.size(0) <= out.size(1) && sample.sizes().slice(1) == out.sizes().slice(2);
  TORCH_CHECK_VALUE(fits, "sample ", number, " must be [at most ", out.size(1), ", *", Shape{out.sizes().slice(2)},
                    "], got ", Shape{sample.sizes()});
}

void pack_cpu_(const Tensor& out, at::TensorList samples) {
  TORCH_CHECK_VALUE(out.dim() >= 2 && out.size(0) == static_cast<int64_t>(samples.size()),
                    "out must be [B = ", samples.size(), ", N, ...] for so many samples, got ", Shape{out.sizes()});
  for (size_t b = 0; b < samples.size(); ++b) check_sample(samples[b], static_cast<int64_t>(b), out);
  if (out.numel() == 0) return;
  const int64_t slab_bytes = out.stride(0) * out.element_size();
  for (size_t b = 0; b < samples.size(); ++b) {
    const Tensor& sample = samples[b];
    if (!out.is_contiguous() || !sample.is_contiguous() || sample.is_conj() || sample.is_neg()) {
      const Tensor target = out.select(0, static_cast<int64_t>(b));
      target.narrow(0, 0, sample.size(0)).copy_(sample);
      target.narrow(0, sample.size(0), out.size(1) - sample.size(0)).zero_();
      continue;
    }
    const int64_t bytes = sample.numel() * sample.element_size();
    char* target = static_cast<char*>(out.mutable_data_ptr()) + static_cast<int64_t>(b) * slab_bytes;
    if (bytes > 0) std::memcpy(target, sample.const_data_ptr(), bytes);
    std::memset(target + bytes, 0, slab_bytes - bytes);
  }
}

// ---- gradients
// -------------------------------------------------------------------------------------------------------

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

using Gather = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const at::Scalar&);
using ScatterAdd = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, c10::SymInt);
using Write = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&,
                                         const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                         c10::SymInt, const at::Scalar&);
using Fill = Tensor(const Tensor&, const Tensor&, const at::Scalar&);
using Sum = Tensor(const Tensor&, const Tensor&);
using Expand = Tensor(const Tensor&, const Tensor&, c10::SymInt);
using Pack = void(const Tensor&, at::TensorList);

const auto& gather_operator() {
  static const auto found = find_operator<Gather>("raggedbev::ragged_gather");
  return found;
}
const auto& scatter_add_operator() {
  static const auto found = find_operator<ScatterAdd>("raggedbev::ragged_scatter_add");
  return found;
}
const auto& write_operator() {
  static const auto found = find_operator<Write>("raggedbev::ragged_write");
  return found;
}
const auto& fill_operator() {
  static const auto found = find_operator<Fill>("raggedbev::ragged_fill");
  return found;
}
const auto& sum_operator() {
  static const auto found = find_operator<Sum>("raggedbev::ragged_sum");
  return found;
}
const auto& expand_operator() {
  static const auto found = find_operator<Expand>("raggedbev::ragged_expand");
  return found;
}
const auto& pack_operator() {
  static const auto found = find_operator<Pack>("raggedbev::ragged_pack_");
  return found;
}

// What a gradient needs of the call: integer tensors, a size and a type.
struct Context {
  std::array<OptionalTensor, 3> integers;
  c10::SymInt num;
  at::ScalarType type;
};

// The gradients of the `inputs` of an operator, as a function of the gradient of its first result.
using Rule = Tensor (*)(const Tensor& grad, const Context& context, size_t input);

// A plain autograd node instead of torch::autograd::Function, which torch.func refuses.
class Backward : public torch::autograd::Node {
 public:
  Backward(const char* name, Rule rule) : name_(name), rule_(rule) {}

  void save(const Context& context) {
    for (size_t i = 0; i < saved_.size(); ++i) {
      given_[i] = context.integers[i].has_value();
      if (given_[i]) saved_[i] = torch::autograd::SavedVariable(*context.integers[i], /*is_output=*/false);
    }
    num_ = context.num;
    type_ = context.type;
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    torch::autograd::variable_list results(num_outputs());
    if (!grads[0].defined()) return results;
    Context context{{}, num_, type_};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = 0; i < saved_.size(); ++i) {
        if (given_[i]) context.integers[i] = saved_[i].unpack();
      }
    }
    for (size_t input = 0; input < results.size(); ++input) {
      if (should_compute_output(input)) results[input] = rule_(grads[0], context, input);
    }
    return results;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : saved_) saved.reset_data();
  }

  std::string name() const override { return name_; }

 private:
  const char* name_;
  Rule rule_;
  std::array<torch::autograd::SavedVariable, 3> saved_;
  std::array<bool, 3> given_;
  c10::SymInt num_;
  at::ScalarType type_;
};

// Autograd holds nodes in shared or intrusive pointers, depending on torch's version.
template <typename Pointer = decltype(torch::autograd::Edge::function)>
auto make_backward(const char* name, Rule rule) {
  if constexpr (std::is_constructible_v<Pointer, Backward*, void (*)(torch::autograd::Node*)>) {
    return std::shared_ptr<Backward>(new Backward(name, rule), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Backward>(name, rule);
  }
}

// Attaches the history of a linear operator to its result.
template <typename... Inputs>
void set_gradient(Tensor& result, const char* name, Rule rule, const Context& context, const Inputs&... inputs) {
  if (!torch::autograd::compute_requires_grad(inputs...)) return;
  const auto node = make_backward(name, rule);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  node->save(context);
  torch::autograd::set_history(result, node);
}

bool has_tangent(const OptionalTensor& tensor) {
  return torch::autograd::isFwGradDefined(tensor);
}

void set_tangent(const Tensor& result, const Tensor& tangent) {
  result._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
}

Tensor gather_backward(const Tensor& grad, const Context& context, size_t) {
  const auto& [indices, num_indices, num_rows] = context.integers;
  return scatter_add_operator().call(grad, *indices, num_indices, num_rows, context.num);
}

Tensor gather_autograd(c10::DispatchKeySet keys, const Tensor& data, const Tensor& indices,
                       const OptionalTensor& num_indices, const OptionalTensor& num_rows, const at::Scalar& filler) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return gather_operator().redispatch(keys & c10::after_autograd_keyset, data, indices, num_indices, num_rows,
                                        filler);
  }();
  set_gradient(out, "RaggedGatherBackward", gather_backward,
               {{indices, num_indices, num_rows}, data.sym_size(2), data.scalar_type()}, data);
  if (has_tangent(data)) {
    set_tangent(out, gather_operator().call(data._fw_grad(0), indices, num_indices, num_rows, 0));
  }
  return out;
}

Tensor scatter_add_backward(const Tensor& grad, const Context& context, size_t) {
  const auto& [indices, num_indices, num_rows] = context.integers;
  return gather_operator().call(grad, *indices, num_indices, num_rows, 0);
}

Tensor scatter_add_autograd(c10::DispatchKeySet keys, const Tensor& values, const Tensor& indices,
                            const OptionalTensor& num_indices, const OptionalTensor& num_rows, c10::SymInt num) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return scatter_add_operator().redispatch(keys & c10::after_autograd_keyset, values, indices, num_indices, num_rows,
                                             num);
  }();
  set_gradient(out, "RaggedScatterAddBackward", scatter_add_backward,
               {{indices, num_indices, num_rows}, 0, values.scalar_type()}, values);
  if (has_tangent(values)) {
    set_tangent(out, scatter_add_operator().call(values._fw_grad(0), indices, num_indices, num_rows, num));
  }
  return out;
}

// To `source` (input 0) what came from it; to `into` (input 1) what stayed.
Tensor write_backward(const Tensor& grad, const Context& context, size_t input) {
  const Tensor& entry = *context.integers[0];
  if (input == 1) return grad.masked_fill(entry.ge(0).unsqueeze(-1), 0);
  return scatter_add_operator().call(grad.unsqueeze(1), entry, std::nullopt, std::nullopt, context.num).squeeze(1);
}

std::tuple<Tensor, Tensor> write_autograd(c10::DispatchKeySet keys, const Tensor& source,
                                          const OptionalTensor& source_indices, const Tensor& target_indices,
                                          const OptionalTensor& num_indices, const OptionalTensor& num_source,
                                          const OptionalTensor& num_targets_valid, const OptionalTensor& into,
                                          c10::SymInt num_targets, const at::Scalar& filler) {
  auto [out, entry] = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return write_operator().redispatch(keys & c10::after_autograd_keyset, source, source_indices, target_indices,
                                       num_indices, num_source, num_targets_valid, into, num_targets, filler);
  }();
  set_gradient(out, "RaggedWriteBackward", write_backward,
               {{entry, std::nullopt, std::nullopt}, source.sym_size(1), source.scalar_type()}, source, into);
  if (has_tangent(source) || has_tangent(into)) {
    const Tensor source_tangent = has_tangent(source) ? source._fw_grad(0) : at::zeros_like(source);
    const OptionalTensor into_tangent = has_tangent(into) ? OptionalTensor(into->_fw_grad(0)) : std::nullopt;
    set_tangent(out, std::get<0>(write_operator().call(source_tangent, source_indices, target_indices, num_indices,
                                                       num_source, num_targets_valid, into_tangent, num_targets, 0)));
  }
  return {out, entry};
}

Tensor fill_backward(const Tensor& grad, const Context& context, size_t) {
  return fill_operator().call(grad, *context.integers[0], 0);
}

Tensor fill_autograd(c10::DispatchKeySet keys, const Tensor& data, const Tensor& sizes, const at::Scalar& value) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return fill_operator().redispatch(keys & c10::after_autograd_keyset, data, sizes, value);
  }();
  set_gradient(out, "RaggedFillBackward", fill_backward, {{sizes}, 0, data.scalar_type()}, data);
  if (has_tangent(data)) set_tangent(out, fill_operator().call(data._fw_grad(0), sizes, 0));
  return out;
}

Tensor sum_backward(const Tensor& grad, const Context& context, size_t) {
  return expand_operator().call(grad.to(context.type), *context.integers[0], context.num);
}

Tensor sum_autograd(c10::DispatchKeySet keys, const Tensor& data, const Tensor& sizes) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return sum_operator().redispatch(keys & c10::after_autograd_keyset, data, sizes);
  }();
  set_gradient(out, "RaggedSumBackward", sum_backward, {{sizes}, data.sym_size(2), data.scalar_type()}, data);
  if (has_tangent(data)) set_tangent(out, sum_operator().call(data._fw_grad(0), sizes));
  return out;
}

Tensor expand_backward(const Tensor& grad, const Context& context, size_t) {
  return sum_operator().call(grad, *context.integers[0]).to(context.type);
}

Tensor expand_autograd(c10::DispatchKeySet keys, const Tensor& values, const Tensor& sizes, c10::SymInt num) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return expand_operator().redispatch(keys & c10::after_autograd_keyset, values, sizes, num);
  }();
  set_gradient(out, "RaggedExpandBackward", expand_backward, {{sizes}, 0, values.scalar_type()}, values);
  if (has_tangent(values)) set_tangent(out, expand_operator().call(values._fw_grad(0), sizes, num));
  return out;
}

void pack_autograd_(c10::DispatchKeySet keys, const Tensor& out, at::TensorList samples) {
  TORCH_CHECK_VALUE(!torch::autograd::compute_requires_grad(out, samples),
                    "ragged_pack_ has no gradient, but out or a sample requires one");
  const at::AutoDispatchBelowADInplaceOrView guard;
  pack_operator().redispatch(keys & c10::after_autograd_keyset, out, samples);
  out.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(raggedbev, CPU, m) {
  m.impl("ragged_pack_", &pack_cpu_);
}

#ifdef RAGGEDBEV_WITH_CUDA
#define RAGGEDBEV_DEVICES(register_on) register_on(CPU) register_on(CUDA)
#else
#define RAGGEDBEV_DEVICES(register_on) register_on(CPU)
#endif
#define RAGGEDBEV_REGISTER(key)                             \
  TORCH_LIBRARY_IMPL(raggedbev, key, m) {                   \
    m.impl("ragged_gather", &gather);                       \
    m.impl("ragged_scatter_add", &scatter_add);             \
    m.impl("ragged_write", &write);                         \
    m.impl("ragged_mask_from_indices", &mask_from_indices); \
    m.impl("ragged_indices_from_mask", &indices_from_mask); \
    m.impl("ragged_fill", &fill);                           \
    m.impl("ragged_sum", &sum);                             \
    m.impl("ragged_expand", &expand);                       \
  }
RAGGEDBEV_DEVICES(RAGGEDBEV_REGISTER)

TORCH_LIBRARY_IMPL(raggedbev, Autograd, m) {
  m.impl("ragged_gather", &gather_autograd);
  m.impl("ragged_scatter_add", &scatter_add_autograd);
  m.impl("ragged_write", &write_autograd);
  m.impl("ragged_fill", &fill_autograd);
  m.impl("ragged_sum", &sum_autograd);
  m.impl("ragged_expand", &expand_autograd);
  m.impl("ragged_pack_", &pack_autograd_);
}

}  // namespace raggedbev::ragged
