// The module raggedbev._C: calls of operators from Python. What torch.ops does for any Python value costs more than
// the kernel of a small batch; a caller does it for plain arguments only, and leaves every other call to torch.ops.
// Either way the call goes through the dispatcher: autograd, functorch, dispatch modes and profilers see it.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#ifdef RAGGEDBEV_WITH_CUDA
#include "common/architectures.h"
#endif

namespace raggedbev {
namespace {

// Types of a schema's arguments that a caller knows.
enum class Kind { kTensor, kOptionalTensor, kInteger, kBool, kFloat, kNumber, kTensors, kOptionalTensors, kFloats };

std::optional<Kind> kind_of(const c10::Type& type) {
  const auto element = [&] { return kind_of(*type.containedType(0)); };
  switch (type.kind()) {
    case c10::TypeKind::TensorType:
      return Kind::kTensor;
    case c10::TypeKind::IntType:
      return Kind::kInteger;
    case c10::TypeKind::BoolType:
      return Kind::kBool;
    case c10::TypeKind::FloatType:
      return Kind::kFloat;
    case c10::TypeKind::NumberType:
      return Kind::kNumber;
    case c10::TypeKind::OptionalType:
      return element() == Kind::kTensor ? std::optional(Kind::kOptionalTensor) : std::nullopt;
    case c10::TypeKind::ListType:
      if (element() == Kind::kTensor) return Kind::kTensors;
      if (element() == Kind::kOptionalTensor) return Kind::kOptionalTensors;
      return element() == Kind::kFloat ? std::optional(Kind::kFloats) : std::nullopt;
    default:
      return std::nullopt;
  }
}

// ---- one argument: false if it is not plain
// --------------------------------------------------------------------------

bool read(PyObject* from, at::Tensor& to) {
  if (!THPVariable_CheckExact(from)) return false;
  to = THPVariable_Unpack(from);
  return true;
}

bool read(PyObject* from, std::optional<at::Tensor>& to) {
  return from == Py_None || read(from, to.emplace());
}

bool read(PyObject* from, double& to) {
  if (!PyFloat_CheckExact(from)) return false;
  to = PyFloat_AS_DOUBLE(from);
  return true;
}

bool read(PyObject* from, int64_t& to) {
  if (!PyLong_CheckExact(from)) return false;
  int overflow = 0;
  to = PyLong_AsLongLongAndOverflow(from, &overflow);
  return overflow == 0;
}

bool read(PyObject* from, bool& to) {
  to = from == Py_True;
  return PyBool_Check(from);
}

template <typename T>
bool read(PyObject* from, c10::List<T>& to) {
  if (!PyList_CheckExact(from)) return false;
  to.reserve(PyList_GET_SIZE(from));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(from); ++i) {
    T element{};
    if (!read(PyList_GET_ITEM(from, i), element)) return false;
    to.push_back(std::move(element));
  }
  return true;
}

template <typename T>
bool push(PyObject* from, torch::jit::Stack& stack) {
  T value{};
  if (!read(from, value)) return false;
  stack.emplace_back(std::move(value));
  return true;
}

bool push(Kind kind, PyObject* from, torch::jit::Stack& stack) {
  switch (kind) {
    case Kind::kTensor:
      return push<at::Tensor>(from, stack);
    case Kind::kOptionalTensor:
      return push<std::optional<at::Tensor>>(from, stack);
    case Kind::kInteger:
      return push<int64_t>(from, stack);
    case Kind::kBool:
      return push<bool>(from, stack);
    case Kind::kFloat:
      return push<double>(from, stack);
    case Kind::kNumber:
      return push<int64_t>(from, stack) || push<double>(from, stack) || push<bool>(from, stack);
    case Kind::kTensors:
      return push<c10::List<at::Tensor>>(from, stack);
    case Kind::kOptionalTensors:
      return push<c10::List<std::optional<at::Tensor>>>(from, stack);
    case Kind::kFloats:
      return push<c10::List<double>>(from, stack);
  }
  return false;
}

// ---- callers
// ---------------------------------------------------------------------------------------------------------

struct Caller {
  c10::OperatorHandle handle;
  std::vector<Kind> kinds;  // of the arguments
  py::object other;         // for calls that are not plain
};

// The arguments if all of them are plain, and nothing but the dispatcher looks at the call.
bool read_arguments(const Caller& caller, PyObject* const* args, Py_ssize_t num_args, torch::jit::Stack& stack) {
  if (num_args != static_cast<Py_ssize_t>(caller.kinds.size())) return false;
  if (at::impl::torch_function_mode_enabled() || at::tracer::impl::is_dispatch_enabled()) return false;
  stack.reserve(num_args);
  for (Py_ssize_t i = 0; i < num_args; ++i) {
    if (!push(caller.kinds[i], args[i], stack)) return false;
  }
  return true;
}

PyObject* wrap(const torch::jit::Stack& results) {
  if (results.empty()) Py_RETURN_NONE;
  if (results.size() == 1) return THPVariable_Wrap(results[0].toTensor());
  auto tuple = py::reinterpret_steal<py::object>(PyTuple_New(static_cast<Py_ssize_t>(results.size())));
  if (!tuple) throw python_error();
  for (size_t i = 0; i < results.size(); ++i) {
    PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(i), THPVariable_Wrap(results[i].toTensor()));
  }
  return tuple.release().ptr();
}

constexpr char kCaller[] = "raggedbev._C.caller";

PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t num_args) {
  HANDLE_TH_ERRORS
  const auto& caller = *static_cast<Caller*>(PyCapsule_GetPointer(self, kCaller));
  torch::jit::Stack stack;
  if (!read_arguments(caller, args, num_args, stack)) {
    return PyObject_Vectorcall(caller.other.ptr(), args, num_args, nullptr);
  }
  {
    const py::gil_scoped_release no_gil;
    caller.handle.callBoxed(stack);
  }
  return wrap(stack);
  END_HANDLE_TH_ERRORS
}

// caller(name, other): a callable with the arguments of the operator `name` by position, that calls it, or `other` if
// they are not plain.
PyObject* make_caller(PyObject*, PyObject* args) {
  HANDLE_TH_ERRORS
  const char* name = nullptr;
  PyObject* other = nullptr;
  if (!PyArg_ParseTuple(args, "sO", &name, &other)) return nullptr;
  const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  auto caller = std::make_unique<Caller>(Caller{handle, {}, py::reinterpret_borrow<py::object>(other)});
  for (const c10::Argument& argument : handle.schema().arguments()) {
    const auto kind = kind_of(*argument.type());
    TORCH_CHECK(kind.has_value(), "a caller knows no arguments of type ", *argument.type(), ", which ", name, " has");
    caller->kinds.push_back(*kind);
  }
  for (const c10::Argument& result : handle.schema().returns()) {
    TORCH_CHECK(kind_of(*result.type()) == Kind::kTensor, "a caller knows no results of type ", *result.type(),
                ", which ", name, " has");
  }
  const auto drop = [](PyObject* capsule) { delete static_cast<Caller*>(PyCapsule_GetPointer(capsule, kCaller)); };
  const auto capsule = py::reinterpret_steal<py::object>(PyCapsule_New(caller.get(), kCaller, drop));
  if (!capsule) throw python_error();
  caller.release();
  static PyMethodDef definition = {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)),
                                   METH_FASTCALL, nullptr};
  return PyCFunction_New(&definition, capsule.ptr());
  END_HANDLE_TH_ERRORS
}

}  // namespace
}  // namespace raggedbev

// Importing the module loads the shared object, which also runs the registrations of library.cpp and the kernels.
// Beside `caller` it has cuda_architectures, a tuple of compute capabilities (80 for 8.0).
PyMODINIT_FUNC PyInit__C() {
  static PyMethodDef methods[] = {{"caller", &raggedbev::make_caller, METH_VARARGS, nullptr},
                                  {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  std::vector<int> architectures;
#ifdef RAGGEDBEV_WITH_CUDA
  architectures = raggedbev::cuda_architectures();
#endif
  PyObject* module = PyModule_Create(&definition);
  PyObject* numbers = PyTuple_New(static_cast<Py_ssize_t>(architectures.size()));
  if (module == nullptr || numbers == nullptr) return nullptr;
  for (size_t i = 0; i < architectures.size(); ++i) {
    PyTuple_SET_ITEM(numbers, static_cast<Py_ssize_t>(i), PyLong_FromLong(architectures[i] / 10));
  }
  PyModule_AddObject(module, "cuda_architectures", numbers);
  return module;
}
