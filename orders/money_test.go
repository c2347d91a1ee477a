package orders_test

import (
	"math/big"
	"strings"
	"testing"

	"github.com/walpost/walpost/orders"
)

func TestParseMoney(t *testing.T) {
	for text, want := range map[string]orders.Money{
		"0": 0, "0.00": 0, "0.01": 1, "1": 1_00, "1.5": 1_50, "19.90": 19_90, "9999999999.99": orders.MaxPrice, "9999999999999999.99": 999_999_999_999_999_999,
	} {
		if got, err := orders.ParseMoney(text); err != nil || got != want {
			t.Errorf("%q: got %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", ".", "1.", ".5", "-1", "+1", "1.001", "1,5", "1e3", "0x1", " 1", "1 ", "01", "00", "1.-1", "1.+1", "1_000", "NaN", "Inf", "١", "1.5.0",
		"10000000000000000", "1\n", "\x00", "1.\x00",
	} {
		if got, err := orders.ParseMoney(text); err == nil {
			t.Errorf("%q is taken as %s", text, got)
		}
	}
}

// An accepted amount has the value of the decimal, and is written in one form only.
func FuzzParseMoney(f *testing.F) {
	for _, text := range []string{"0", "19.90", "5", "0.1", "-1", "1e9", "9999999999999999.99", "1.", "001"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := orders.ParseMoney(text)
		if err != nil {
			return
		}
		want, ok := new(big.Rat).SetString(text)
		if !ok || want.Cmp(big.NewRat(int64(m), 100)) != 0 || !strings.HasPrefix(m.String(), text) {
			t.Errorf("%q is taken as %s", text, m)
		}
		if again, err := orders.ParseMoney(m.String()); err != nil || again != m {
			t.Errorf("%s is read back as %s, %v", m, again, err)
		}
	})
}
