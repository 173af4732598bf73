// Text to numbers, as int() and float() read it, and numbers to numbers.
#include <algorithm>
#include <charconv>
#include <cmath>
#include "core/text/jinja/methods.h"
#include "core/text/jinja/unicode.h"

namespace awq::jinja {

double to_double(const Value& value) {
    if (value.is(Kind::real)) return value.real();
    if (!value.is(Kind::big)) return static_cast<double>(value.integer());
    double out = value.big().to_double();
    if (std::isinf(out)) fail(Fault::overflow, "int too large to convert to float");
    return out;
}

Value truncate_double(double value) {
    if (std::isnan(value)) fail(Fault::value, "cannot convert float NaN to integer");
    if (std::isinf(value)) fail(Fault::overflow, "cannot convert float infinity to integer");
    return new_integer(BigInt::from_double(std::trunc(value)));
}

namespace {

// ASCII without the white space around and with decimal digits of other scripts as 0 to 9; false where that cannot be.
bool plain_digits(std::string_view text, std::string& out) {
    text = strip(text, nullptr, true, true);
    for (size_t i = 0; i < text.size();) {
        char32_t c = next_code_point(text, i);
        if (c >= 0x80) {
            if (!is_decimal(c)) return false;
            char32_t zero = c;  // decimal digits stand in runs of ten, the mathematical ones in five runs that touch
            while (is_decimal(zero - 1) && c - zero < 9) zero--;
            if (c >= 0x1d7ce && c <= 0x1d7ff) zero = c - (c - 0x1d7ce) % 10;
            c = '0' + (c - zero);
        }
        out += static_cast<char>(c);
    }
    return true;
}

// Takes out the underscores; each may only stand between two characters that `fits`, or first in what follows a prefix.
bool remove_underscores(std::string& text, bool after_prefix, bool (*fits)(char)) {
    std::string out;
    for (size_t i = 0; i < text.size(); i++) {
        if (text[i] != '_') {
            out += text[i];
            continue;
        }
        bool before = i > 0 ? fits(text[i - 1]) : after_prefix;
        if (!before || i + 1 >= text.size() || !fits(text[i + 1])) return false;
    }
    text = out;
    return true;
}

bool is_digit_char(char c) { return c >= '0' && c <= '9'; }
bool is_digit_or_letter(char c) { return is_digit_char(c) || ((c | 32) >= 'a' && (c | 32) <= 'z'); }

}  // namespace

Value parse_integer(std::string_view given, int64_t base) {
    if (base != 0 && (base < 2 || base > 36)) return Value();
    std::string text;
    if (!plain_digits(given, text)) return Value();
    bool negative = !text.empty() && text[0] == '-';
    if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.erase(0, 1);
    char mark = text.size() > 1 && text[0] == '0' ? static_cast<char>(text[1] | 32) : '\0';
    int64_t marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
    bool prefix = marked && (base == 0 || base == marked);
    if (prefix) {
        text.erase(0, 2);
        base = marked;
    } else if (base == 0) {
        if (text.size() > 1 && text[0] == '0' && text.find_first_not_of("0_") != text.npos) return Value();
        base = 10;
    }
    if (!remove_underscores(text, prefix, is_digit_or_letter) || text.empty()) return Value();
    for (char c : text) {
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'z' ? (c | 32) - 'a' + 10 : 99;
        if (digit >= base) return Value();
    }
    if (text.size() > 4300) {
        if ((base & (base - 1)) != 0) return Value();  // Python refuses so many digits with a ValueError
        fail(Fault::limit, "an integer of more than 4300 digits");
    }
    BigInt value = BigInt::from_digits(text, static_cast<int>(base));
    return new_integer(negative ? -value : value);
}

bool parse_double(std::string_view given, double& value) {
    std::string text;
    if (!plain_digits(given, text) || text.empty()) return false;
    std::string lower = to_lower(text);
    std::string_view word = lower;
    bool negative = word[0] == '-';
    if (word[0] == '-' || word[0] == '+') word.remove_prefix(1);
    if (word == "inf" || word == "infinity" || word == "nan") {
        value = std::copysign(word == "nan" ? NAN : HUGE_VAL, negative ? -1.0 : 1.0);
        return true;
    }
    if (!remove_underscores(lower, false, is_digit_char)) return false;
    word = lower;
    if (word[0] == '-' || word[0] == '+') word.remove_prefix(1);
    if (word.empty() || word.find_first_not_of("0123456789.e+-") != word.npos || word[0] == '-' || word[0] == '+') return false;
    auto [end, status] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (end != word.data() + word.size()) return false;
    if (status == std::errc::result_out_of_range) {
        size_t e = word.find('e');
        bool tiny = e != word.npos ? word[e + 1] == '-' : word.find_first_not_of("0.") > word.find('.');
        value = tiny ? 0 : HUGE_VAL;
    }
    if (negative) value = -value;
    return true;
}

}  // namespace awq::jinja
