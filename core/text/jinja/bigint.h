// Integers past 64 bits, as Python has them: what a template's arithmetic falls back to when an int64 overflows.
//
// Sign and magnitude, schoolbook algorithms. Sizes are bounded by the caller (ops.cpp), so that no operation is slow.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace awq::jinja {

class BigInt {
public:
    BigInt() = default;
    BigInt(int64_t value);
    static BigInt from_double(double integral);                    // finite and without a fraction
    static BigInt from_digits(std::string_view digits, int base);  // digits only, all below the base

    bool negative() const { return negative_; }
    bool is_zero() const { return limbs_.empty(); }
    size_t bits() const;  // of the magnitude
    std::optional<int64_t> to_int64() const;
    double to_double() const;  // nearest, ties to even; infinite where too large
    std::string to_string(int base = 10) const;
    size_t hash() const;

    BigInt operator-() const;
    friend BigInt operator+(const BigInt& a, const BigInt& b);
    friend BigInt operator-(const BigInt& a, const BigInt& b) { return a + -b; }
    friend BigInt operator*(const BigInt& a, const BigInt& b);
    static void divide(const BigInt& a, const BigInt& b, BigInt& quotient, BigInt& remainder);  // floored; b is not 0
    friend int compare(const BigInt& a, const BigInt& b);                                       // -1, 0, 1

private:
    using Limbs = std::vector<uint32_t>;  // least significant first, no leading zeros
    static int compare_limbs(const Limbs& a, const Limbs& b);
    static uint32_t divide_small(Limbs& limbs, uint32_t by);  // in place; the remainder
    void trim();
    Limbs limbs_;
    bool negative_ = false;  // never with no limbs
};

}  // namespace awq::jinja
