#include "core/text/jinja/bigint.h"
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

namespace awq::jinja {

BigInt::BigInt(int64_t value) : negative_(value < 0) {
    for (uint64_t rest = value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value); rest; rest >>= 32)
        limbs_.push_back(static_cast<uint32_t>(rest));
}

BigInt BigInt::from_double(double integral) {
    int exponent;
    double fraction = std::frexp(std::fabs(integral), &exponent);
    int shift = std::max(exponent - 53, 0);
    auto mantissa = static_cast<uint64_t>(std::ldexp(fraction, exponent - shift));
    BigInt out;
    out.limbs_.assign(static_cast<size_t>(shift) / 32, 0);
    unsigned __int128 wide = static_cast<unsigned __int128>(mantissa) << (shift % 32);
    for (; wide; wide >>= 32) out.limbs_.push_back(static_cast<uint32_t>(wide));
    out.negative_ = integral < 0;
    out.trim();
    return out;
}

BigInt BigInt::from_digits(std::string_view digits, int base) {
    BigInt out;
    for (char c : digits) {
        int digit = c <= '9' ? c - '0' : (c | 32) - 'a' + 10;
        uint64_t carry = static_cast<uint64_t>(digit);
        for (uint32_t& limb : out.limbs_) {
            carry += static_cast<uint64_t>(limb) * static_cast<uint64_t>(base);
            limb = static_cast<uint32_t>(carry);
            carry >>= 32;
        }
        if (carry) out.limbs_.push_back(static_cast<uint32_t>(carry));
    }
    return out;
}

void BigInt::trim() {
    while (!limbs_.empty() && limbs_.back() == 0) limbs_.pop_back();
    if (limbs_.empty()) negative_ = false;
}

size_t BigInt::bits() const {
    return limbs_.empty() ? 0 : limbs_.size() * 32 - static_cast<size_t>(std::countl_zero(limbs_.back()));
}

std::optional<int64_t> BigInt::to_int64() const {
    if (limbs_.size() > 2) return std::nullopt;
    uint64_t magnitude = 0;
    for (size_t i = limbs_.size(); i-- > 0;) magnitude = magnitude << 32 | limbs_[i];
    uint64_t limit = static_cast<uint64_t>(INT64_MAX) + (negative_ ? 1 : 0);
    if (magnitude > limit) return std::nullopt;
    return static_cast<int64_t>(negative_ ? 0 - magnitude : magnitude);
}

double BigInt::to_double() const {
    size_t n = bits();
    if (n > 1100) return negative_ ? -HUGE_VAL : HUGE_VAL;
    size_t drop = n > 64 ? n - 64 : 0;
    uint64_t top = 0;
    bool sticky = false;
    for (size_t i = 0; i < n; i++) {
        bool bit = limbs_[i / 32] >> (i % 32) & 1;
        if (i < drop)
            sticky |= bit;
        else
            top |= static_cast<uint64_t>(bit) << (i - drop);
    }
    // With all 64 bits in use the lowest decides no rounding but as a sticky bit, so the conversion below rounds once.
    if (sticky) top |= 1;
    double value = std::ldexp(static_cast<double>(top), static_cast<int>(drop));
    return negative_ ? -value : value;
}

uint32_t BigInt::divide_small(Limbs& limbs, uint32_t by) {
    uint64_t rest = 0;
    for (size_t i = limbs.size(); i-- > 0;) {
        rest = rest << 32 | limbs[i];
        limbs[i] = static_cast<uint32_t>(rest / by);
        rest %= by;
    }
    while (!limbs.empty() && limbs.back() == 0) limbs.pop_back();
    return static_cast<uint32_t>(rest);
}

std::string BigInt::to_string(int base) const {
    if (limbs_.empty()) return "0";
    std::string out;
    uint32_t chunk = static_cast<uint32_t>(base);
    int chunk_digits = 1;
    while (static_cast<uint64_t>(chunk) * static_cast<uint64_t>(base) <= UINT32_MAX)
        chunk *= static_cast<uint32_t>(base), chunk_digits++;
    for (Limbs rest = limbs_; !rest.empty();) {
        uint32_t part = divide_small(rest, chunk);
        for (int i = 0; i < chunk_digits && (part || !rest.empty()); i++) {
            out += "0123456789abcdef"[part % static_cast<uint32_t>(base)];
            part /= static_cast<uint32_t>(base);
        }
    }
    if (negative_) out += '-';
    std::reverse(out.begin(), out.end());
    return out;
}

size_t BigInt::hash() const {
    size_t h = negative_ ? 0x9e3779b97f4a7c15u : 0;
    for (uint32_t limb : limbs_) h = (h ^ limb) * 0x100000001b3u;
    return h;
}

BigInt BigInt::operator-() const {
    BigInt out = *this;
    out.negative_ = !negative_ && !limbs_.empty();
    return out;
}

int BigInt::compare_limbs(const Limbs& a, const Limbs& b) {
    if (a.size() != b.size()) return a.size() < b.size() ? -1 : 1;
    for (size_t i = a.size(); i-- > 0;)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}

int compare(const BigInt& a, const BigInt& b) {
    if (a.negative_ != b.negative_) return a.negative_ ? -1 : 1;
    int magnitude = BigInt::compare_limbs(a.limbs_, b.limbs_);
    return a.negative_ ? -magnitude : magnitude;
}

BigInt operator+(const BigInt& a, const BigInt& b) {
    BigInt out;
    if (a.negative_ == b.negative_) {
        const auto &large = a.limbs_.size() < b.limbs_.size() ? b : a, &small = a.limbs_.size() < b.limbs_.size() ? a : b;
        uint64_t carry = 0;
        for (size_t i = 0; i < large.limbs_.size() || carry; i++) {
            if (i < large.limbs_.size()) carry += large.limbs_[i];
            if (i < small.limbs_.size()) carry += small.limbs_[i];
            out.limbs_.push_back(static_cast<uint32_t>(carry));
            carry >>= 32;
        }
        out.negative_ = a.negative_;
    } else {
        bool swap = BigInt::compare_limbs(a.limbs_, b.limbs_) < 0;
        const auto &large = swap ? b : a, &small = swap ? a : b;
        int64_t borrow = 0;
        for (size_t i = 0; i < large.limbs_.size(); i++) {
            int64_t digit = static_cast<int64_t>(large.limbs_[i]) - borrow - (i < small.limbs_.size() ? small.limbs_[i] : 0);
            borrow = digit < 0;
            out.limbs_.push_back(static_cast<uint32_t>(digit + (borrow << 32)));
        }
        out.negative_ = large.negative_;
    }
    out.trim();
    return out;
}

BigInt operator*(const BigInt& a, const BigInt& b) {
    BigInt out;
    out.limbs_.assign(a.limbs_.size() + b.limbs_.size(), 0);
    for (size_t i = 0; i < a.limbs_.size(); i++) {
        uint64_t carry = 0;
        for (size_t j = 0; j < b.limbs_.size() || carry; j++) {
            carry += out.limbs_[i + j];
            if (j < b.limbs_.size()) carry += static_cast<uint64_t>(a.limbs_[i]) * b.limbs_[j];
            out.limbs_[i + j] = static_cast<uint32_t>(carry);
            carry >>= 32;
        }
    }
    out.negative_ = a.negative_ != b.negative_;
    out.trim();
    return out;
}

void BigInt::divide(const BigInt& a, const BigInt& b, BigInt& quotient, BigInt& remainder) {
    quotient = BigInt();
    remainder = BigInt();
    if (b.limbs_.size() == 1) {
        quotient.limbs_ = a.limbs_;
        if (uint32_t rest = divide_small(quotient.limbs_, b.limbs_[0])) remainder.limbs_.push_back(rest);
    } else {
        // One bit at a time: slow, but sizes are bounded and such divisions are rare.
        quotient.limbs_.assign(a.limbs_.size(), 0);
        for (size_t i = a.bits(); i-- > 0;) {
            uint32_t carry = a.limbs_[i / 32] >> (i % 32) & 1;
            for (uint32_t& limb : remainder.limbs_) {
                uint32_t next = limb >> 31;
                limb = limb << 1 | carry;
                carry = next;
            }
            if (carry) remainder.limbs_.push_back(carry);
            if (compare_limbs(remainder.limbs_, b.limbs_) >= 0) {
                BigInt positive;
                positive.limbs_ = b.limbs_;
                remainder = remainder - positive;
                quotient.limbs_[i / 32] |= 1u << (i % 32);
            }
        }
    }
    quotient.trim();
    remainder.trim();
    // From truncation to the floor, the remainder with the sign of b.
    if (a.negative_ != b.negative_) {
        quotient = -quotient;
        if (!remainder.is_zero()) {
            quotient = quotient - BigInt(1);
            BigInt magnitude;
            magnitude.limbs_ = b.limbs_;
            remainder = magnitude - remainder;
        }
    }
    if (b.negative_) remainder = -remainder;
}

}  // namespace awq::jinja
