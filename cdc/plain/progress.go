package plain

import (
	"fmt"
	"time"
)

// Bytes is the unit of an amount that Progress writes as sizes.
const Bytes = "bytes"

// Progress returns how far a work is, how fast it goes and how long the rest takes: 1200 of 3400 rows, 40 rows/s, 55 s left.
// unit is what the work counts, took the time since it began. The total is 0 if it is not known.
func Progress(done, total int64, unit string, took time.Duration) string {
	amount := func(n int64) string {
		if unit == Bytes {
			return Size(n)
		}
		return fmt.Sprint(n)
	}
	said := amount(done)
	if total > 0 {
		said += " of " + amount(total)
	}
	if unit != Bytes {
		said += " " + unit
	}
	if done <= 0 || took <= 0 {
		return said
	}
	rate := float64(done) / took.Seconds()
	switch {
	case unit == Bytes:
		said += ", " + Size(int64(rate)) + "/s"
	case rate >= 10:
		said += fmt.Sprintf(", %.0f %s/s", rate, unit)
	default:
		said += fmt.Sprintf(", %.2g %s/s", rate, unit)
	}
	if total > done {
		said += ", " + Duration(time.Duration(float64(total-done)/rate*float64(time.Second))) + " left"
	}
	return said
}
