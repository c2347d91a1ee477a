package plain_test

import (
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/plain"
)

func TestProgress(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		unit        string
		took        time.Duration
		want        string
	}{
		{1200, 3400, "rows", 30 * time.Second, "1200 of 3400 rows, 40 rows/s, 55 s left"},
		{100 << 20, 400 << 20, plain.Bytes, 10 * time.Second, "100 MiB of 400 MiB, 10 MiB/s, 30 s left"},
		{0, 10, "rows", time.Minute, "0 of 10 rows"},
		{5, 0, "rows", 10 * time.Second, "5 rows, 0.5 rows/s"},
		{10, 10, "rows", time.Second, "10 of 10 rows, 10 rows/s"},
		{12, 10, "rows", time.Second, "12 of 10 rows, 12 rows/s"},
		{5, 10, "rows", 0, "5 of 10 rows"},
	} {
		if got := plain.Progress(c.done, c.total, c.unit, c.took); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
