package orders

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Money is an amount in hundredths of its currency's unit. In text, JSON and SQL it is a decimal with two places.
type Money int64

// MaxPrice is the highest price of one piece: the limit of numeric(12,2). The total of MaxItems lines of MaxQuantity
// pieces at this price still fits into an int64 of hundredths, so no total can overflow.
const MaxPrice Money = 9_999_999_999_99

var errMoney = errors.New(`must be a decimal string with at most two places, as in "19.90"`)

// ParseMoney reads an amount from 0 to 9999999999999999.99, with at most two decimal places and without a sign,
// exponent, space or superfluous leading zero.
func ParseMoney(s string) (Money, error) {
	whole, cents, point := strings.Cut(s, ".")
	if len(whole) > 1 && whole[0] == '0' || len(whole) > 16 || point && cents == "" || len(cents) > 2 {
		return 0, errMoney
	}
	digits := whole + (cents + "00")[:2]
	if whole == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, errMoney
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, errMoney
	}
	return Money(n), nil
}

// String returns the amount with two decimal places.
func (m Money) String() string { return fmt.Sprintf("%d.%02d", m/100, m%100) }

// MarshalText returns the amount as text, so that JSON has a string.
func (m Money) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the text that ParseMoney accepts; a JSON number is not text.
func (m *Money) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMoney(string(text))
	return err
}

// Scan reads a numeric.
func (m *Money) Scan(src any) error {
	s, ok := src.(string)
	if !ok {
		return fmt.Errorf("scan %T as an amount", src)
	}
	return m.UnmarshalText([]byte(s))
}

// Value writes a numeric.
func (m Money) Value() (driver.Value, error) { return m.String(), nil }
