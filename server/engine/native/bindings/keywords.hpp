// Constructors with many keyword arguments, each named once, beside the member that it sets.
#pragma once

#include <string>

#include "bindings/bindings.hpp"

namespace secateur {

// Raises TypeError for an argument that is missing, unknown, or of another type.
class Keywords {
public:
    Keywords(const char* type, nb::kwargs given) : type_(type), given_(std::move(given)) {}

    template <class Value> void take(const char* name, Value& member) {
        if (!take_optional(name, member)) fail("needs the argument " + quoted(name));
    }

    // Leaves the member as it is where the argument is missing.
    template <class Value> bool take_optional(const char* name, Value& member) {
        if (!given_.contains(name)) return false;
        const nb::object value = given_[name];
        nb::del(given_[name]);
        if (!convert(value, member)) fail("got another type for " + quoted(name));
        return true;
    }

    // An item of the list that the argument `name` is.
    template <class Value> const Value& item(const char* name, nb::handle from) const {
        if (!nb::isinstance<Value>(from)) fail("got another type for " + quoted(name));
        return nb::cast<const Value&>(from);
    }

    // Call it after the last argument.
    void finish() const {
        for (const auto& [name, value] : given_) fail("has no argument " + quoted(nb::str(name).c_str()));
    }

    // The weights that were taken.
    std::vector<nb::object> weights;

private:
    template <class Value> bool convert(const nb::object& from, Value& to) { return nb::try_cast(from, to); }

    bool convert(const nb::object& from, Matrix& to) {
        if (!nb::isinstance<Weight>(from)) return false;
        to = nb::cast<const Weight&>(from).matrix;
        weights.push_back(from);
        return true;
    }

    bool convert(const nb::object& from, Vector& to) {
        FloatVector values;
        if (!nb::try_cast(from, values)) return false;
        to.assign(values.data(), values.data() + values.size());
        return true;
    }

    static std::string quoted(const char* name) { return std::string("'") + name + "'"; }

    [[noreturn]] void fail(const std::string& sentence) const {
        throw nb::type_error((std::string(type_) + " " + sentence).c_str());
    }

    const char* type_;
    nb::kwargs given_;
};

}  // namespace secateur
