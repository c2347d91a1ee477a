package debezium

import (
	"errors"
	"math/big"
	"strconv"
	"strings"
	"time"
)

var errNotANumber = errors.New("not a number")

// parseDecimal reads PostgreSQL's text of a number.
func parseDecimal(text []byte) (decimal, error) {
	s, e := string(text), 0
	if at := strings.IndexAny(s, "eE"); at >= 0 {
		n, err := strconv.Atoi(s[at+1:])
		if err != nil {
			return decimal{}, errNotANumber
		}
		s, e = s[:at], n
	}
	scale := 0
	if whole, fraction, ok := strings.Cut(s, "."); ok {
		s, scale = whole+fraction, len(fraction)
	}
	n, ok := new(big.Int).SetString(s, 10)
	if !ok || strings.ContainsRune(s, '_') {
		return decimal{}, errNotANumber
	}
	return decimal{unscaled: n, scale: scale - e}, nil
}

var ten = big.NewInt(10)

func tenTo(n int) *big.Int { return new(big.Int).Exp(ten, big.NewInt(int64(n)), nil) }

// rescale returns the number with the scale, or false if that would drop digits.
func (d decimal) rescale(scale int) (decimal, bool) {
	if scale >= d.scale {
		return decimal{new(big.Int).Mul(d.unscaled, tenTo(scale-d.scale)), scale}, true
	}
	q, r := new(big.Int).QuoRem(d.unscaled, tenTo(d.scale-scale), new(big.Int))
	return decimal{q, scale}, r.Sign() == 0
}

// strip returns the number without zeros at the end, with a scale of zero at least.
func (d decimal) strip() decimal {
	if d.unscaled.Sign() == 0 {
		return decimal{new(big.Int), 0}
	}
	n, r := new(big.Int).Set(d.unscaled), new(big.Int)
	scale := d.scale
	for scale > 0 {
		q, rest := new(big.Int).QuoRem(n, ten, r)
		if rest.Sign() != 0 {
			break
		}
		n, scale = q, scale-1
	}
	if scale < 0 {
		n, scale = n.Mul(n, tenTo(-scale)), 0
	}
	return decimal{n, scale}
}

// appendPlain appends the number as BigDecimal.toPlainString does.
func appendPlain(b []byte, d decimal) []byte {
	if d.scale <= 0 {
		if d.unscaled.Sign() == 0 {
			return append(b, '0')
		}
		return append(d.unscaled.Append(b, 10), strings.Repeat("0", -d.scale)...)
	}
	digits := new(big.Int).Abs(d.unscaled).String()
	if d.unscaled.Sign() < 0 {
		b = append(b, '-')
	}
	if len(digits) <= d.scale {
		digits = strings.Repeat("0", d.scale-len(digits)+1) + digits
	}
	b = append(append(b, digits[:len(digits)-d.scale]...), '.')
	return append(b, digits[len(digits)-d.scale:]...)
}

// appendDecimal appends the number as BigDecimal.toString does, which has an exponent for small numbers.
func appendDecimal(b []byte, d decimal) []byte {
	digits := new(big.Int).Abs(d.unscaled).String()
	exponent := -d.scale + len(digits) - 1
	if d.scale >= 0 && exponent >= -6 {
		return appendPlain(b, d)
	}
	if d.unscaled.Sign() < 0 {
		b = append(b, '-')
	}
	b = append(b, digits[0])
	if len(digits) > 1 {
		b = append(append(b, '.'), digits[1:]...)
	}
	if exponent == 0 {
		return b
	}
	b = append(b, 'E')
	if exponent > 0 {
		b = append(b, '+')
	}
	return strconv.AppendInt(b, int64(exponent), 10)
}

// double returns the number that is nearest.
func (d decimal) double() float64 {
	f, _ := strconv.ParseFloat(string(appendDecimal(nil, d)), 64)
	return f
}

// twosComplement returns the bytes of BigInteger.toByteArray.
func twosComplement(n *big.Int) []byte {
	if n.Sign() >= 0 {
		b := n.Bytes()
		if len(b) == 0 || b[0] >= 0x80 {
			b = append([]byte{0}, b...)
		}
		return b
	}
	size := new(big.Int).Not(n).BitLen()/8 + 1
	b := new(big.Int).Add(n, new(big.Int).Lsh(big.NewInt(1), uint(size*8))).Bytes()
	for len(b) < size {
		b = append([]byte{0xFF}, b...)
	}
	return b
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// appendDateText appends java.util.Date.toString of a machine whose time zone is UTC.
func appendDateText(b []byte, ms int64) []byte {
	return time.UnixMilli(ms).UTC().AppendFormat(b, "Mon Jan 02 15:04:05 UTC 2006")
}

// appendDateHeader appends a java.util.Date as SimpleHeaderConverter does on a machine whose time zone is UTC.
func appendDateHeader(b []byte, ms int64) []byte {
	layout := "2006-01-02T15:04:05.000Z"
	switch {
	case ms < 86_400_000:
		layout = "15:04:05.000Z"
	case ms%86_400_000 == 0:
		layout = "2006-01-02"
	}
	return time.UnixMilli(ms).UTC().AppendFormat(b, layout)
}
