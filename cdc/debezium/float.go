package debezium

import (
	"math"
	"math/big"
	"math/bits"
	"strconv"
)

// appendFloat appends a number as Java's Double.toString does, or Float.toString for a single one: with one digit behind
// the point at least, and with an exponent below 10^-3 and from 10^7 on. The digits are those of Java up to 18, on which
// the recordings ran: they are not always the shortest ones that read as the same number. Later versions write these.
func appendFloat(b []byte, f float64, single bool) []byte {
	switch {
	case math.IsNaN(f):
		return append(b, "NaN"...)
	case math.IsInf(f, 1):
		return append(b, "Infinity"...)
	case math.IsInf(f, -1):
		return append(b, "-Infinity"...)
	}
	if math.Signbit(f) {
		b, f = append(b, '-'), -f
	}
	if f == 0 {
		return append(b, "0.0"...)
	}
	digits, exponent := javaDigits(f, single)
	zeros := func(n int) {
		for range n {
			b = append(b, '0')
		}
	}
	switch n := len(digits); {
	case exponent > 0 && exponent < 8 && n <= exponent:
		b = append(b, digits...)
		zeros(exponent - n)
		return append(b, ".0"...)
	case exponent > 0 && exponent < 8:
		b = append(append(b, digits[:exponent]...), '.')
		return append(b, digits[exponent:]...)
	case exponent <= 0 && exponent > -3:
		b = append(b, "0."...)
		zeros(-exponent)
		return append(b, digits...)
	default:
		b = append(append(b, digits[0]), '.')
		if n == 1 {
			b = append(b, '0')
		}
		b = append(append(b, digits[1:]...), 'E')
		return strconv.AppendInt(b, int64(exponent-1), 10)
	}
}

// javaDigits returns the decimal digits of a positive number, and the power of ten of the point before them.
func javaDigits(f float64, single bool) (digits []byte, exponent int) {
	raw := math.Float64bits(f)
	fraction, e := raw&(1<<52-1), int(raw>>52)
	significant := 53
	if e == 0 {
		significant = bits.Len64(fraction)
		fraction, e = fraction<<(53-significant), 1-(53-significant)
	} else {
		fraction |= 1 << 52
	}
	e -= 1023
	if single {
		if significant = 24; e < -126 {
			significant = 24 - (-126 - e)
		}
	}
	tail := bits.TrailingZeros64(fraction)
	length := 53 - tail // bits of the fraction without zeros at the end
	tiny := max(0, length-e-1)
	if tiny == 0 && e <= 62 && length < 64 {
		return wholeDigits(fraction, e, significant)
	}
	guess := float64((math.Float64frombits(1023<<52|fraction&(1<<52-1))-1.5)*0.289529654) + 0.176091259 + float64(float64(e)*0.301029995663981)
	ten := int(math.Floor(guess))

	b5, s5 := max(0, -ten), max(0, ten)
	b2, s2 := b5+tiny+e, s5+tiny
	m2 := b2 - significant
	b2 -= length - 1
	common := min(b2, s2)
	b2, s2, m2 = b2-common, s2-common, m2-common
	if length == 1 {
		m2--
	}
	if m2 < 0 {
		b2, s2, m2 = b2-m2, s2-m2, 0
	}
	step, half := bigSteps(fraction>>tail, b5, b2, s5, s2, m2)
	if wide, tens := length+b2+fiveBits(b5), s2+1+fiveBits(s5+1); wide < 64 && tens < 64 {
		step, half = wordSteps(fraction>>tail, b5, b2, s5, s2, m2, wide < 32 && tens < 32)
	}
	digit, low, high := step()
	if digit == 0 && !high {
		ten--
	} else {
		digits = append(digits, '0'+digit)
	}
	if ten < -3 || ten >= 8 {
		low, high = false, false // two digits at least in front of an exponent
	}
	for !low && !high {
		digit, low, high = step()
		digits = append(digits, '0'+digit)
	}
	exponent = ten + 1
	up := high
	if high && low {
		if up = half() > 0; half() == 0 {
			up = digits[len(digits)-1]&1 != 0
		}
	}
	if up {
		return roundUp(digits, exponent)
	}
	return digits, exponent
}

// bigSteps returns what computes the next digit, and whether digits below or above it would read as the same number; and
// what compares the rest with a half. The number is n×5^b5×2^b2 / (5^s5×2^s2), and the distance to a half of its last
// place 5^b5×2^m2 / (5^s5×2^s2).
func bigSteps(n uint64, b5, b2, s5, s2, m2 int) (step func() (byte, bool, bool), half func() int) {
	b, s, m := power(n, b5, b2), power(1, s5, s2), power(1, b5, m2)
	tens := new(big.Int).Mul(s, big.NewInt(10))
	return func() (byte, bool, bool) {
			q, r := new(big.Int).QuoRem(b, s, new(big.Int))
			b.Mul(r, big.NewInt(10))
			m.Mul(m, big.NewInt(10))
			return byte(q.Int64()), b.Cmp(m) < 0, new(big.Int).Add(b, m).Cmp(tens) >= 0
		}, func() int {
			return new(big.Int).Lsh(b, 1).Cmp(tens)
		}
}

// wordSteps does what bigSteps does in a machine word, with Java's overflows.
func wordSteps(n uint64, b5, b2, s5, s2, m2 int, narrow bool) (step func() (byte, bool, bool), half func() int) {
	wrap := func(x int64) int64 {
		if narrow {
			return int64(int32(x))
		}
		return x
	}
	b, s, m := power(n, b5, b2).Int64(), power(1, s5, s2).Int64(), wrap(int64(power(1, b5, m2).Uint64()))
	tens := wrap(s * 10)
	return func() (byte, bool, bool) {
			q := b / s
			b, m = wrap(10*(b%s)), wrap(m*10)
			if m <= 0 {
				return byte(q), true, true
			}
			return byte(q), b < m, wrap(b+m) > tens
		}, func() int {
			return int(min(max(wrap(wrap(b<<1)-tens), -1), 1))
		}
}

// wholeDigits returns the digits of a number without a fraction, rounded where the number has fewer significant bits.
func wholeDigits(fraction uint64, e, significant int) ([]byte, int) {
	n := fraction
	if e >= 52 {
		n <<= e - 52
	} else {
		n >>= 52 - e
	}
	exponent := 0
	if spare := e - significant - 1; spare > 1 {
		dropped := len(strconv.FormatUint(1<<spare, 10)) - 1
		pow := uint64(1)
		for range dropped {
			pow *= 10
		}
		residue := n % pow
		n, exponent = n/pow, dropped
		if residue >= pow/2 && dropped > 0 {
			n++
		}
	}
	digits := strconv.AppendUint(nil, n, 10)
	exponent += len(digits)
	for len(digits) > 1 && digits[len(digits)-1] == '0' {
		digits = digits[:len(digits)-1]
	}
	return digits, exponent
}

func roundUp(digits []byte, exponent int) ([]byte, int) {
	i := len(digits) - 1
	for ; i > 0 && digits[i] == '9'; i-- {
		digits[i] = '0'
	}
	if digits[i] == '9' {
		digits[i] = '1'
		return digits, exponent + 1
	}
	digits[i]++
	return digits, exponent
}

// fiveBits returns the number of bits of 5^n, as Java counts them.
func fiveBits(n int) int {
	switch {
	case n == 0:
		return 0
	case n < 27:
		return power(1, n, 0).BitLen()
	default:
		return n * 3
	}
}

// power returns n × 5^five × 2^two.
func power(n uint64, five, two int) *big.Int {
	p := new(big.Int).Exp(big.NewInt(5), big.NewInt(int64(five)), nil)
	return p.Lsh(p.Mul(p, new(big.Int).SetUint64(n)), uint(two))
}
