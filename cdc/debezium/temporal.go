package debezium

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Days and microseconds that Debezium writes for infinity.
const (
	infiniteMicros = 9_223_372_036_825_200_000
	finiteMicros   = -9_223_372_036_832_400_000
)

// clock is a date and a time of day as PostgreSQL prints them, in UTC.
type clock struct {
	year, month, day int
	micros           int64 // of the day; 24:00:00 is 86,400,000,000
}

// readDate reads 2024-02-29, and returns the rest.
func readDate(t []byte) (c clock, rest []byte, err error) {
	y, m, d := 0, 0, 0
	for _, part := range []*int{&y, &m, &d} {
		i := 0
		for i < len(t) && t[i] >= '0' && t[i] <= '9' && i < 10 {
			*part = *part*10 + int(t[i]-'0')
			i++
		}
		if i == 0 || part != &d && (i == len(t) || t[i] != '-') {
			return c, nil, errValue
		}
		if t = t[i:]; part != &d {
			t = t[1:]
		}
	}
	return clock{year: y, month: m, day: d}, t, nil
}

// readTimeOfDay reads 12:34:56.789, and returns the microseconds and the rest.
func readTimeOfDay(t []byte) (micros int64, rest []byte, err error) {
	if len(t) < 8 || t[2] != ':' || t[5] != ':' {
		return 0, nil, errValue
	}
	for i := 0; i < 8; i += 3 {
		if t[i] < '0' || t[i] > '9' || t[i+1] < '0' || t[i+1] > '9' {
			return 0, nil, errValue
		}
		micros = micros*60 + int64(t[i]-'0')*10 + int64(t[i+1]-'0')
	}
	micros *= 1_000_000
	if t = t[8:]; len(t) > 0 && t[0] == '.' {
		i := 1
		for factor := int64(100_000); i < len(t) && t[i] >= '0' && t[i] <= '9'; i++ {
			micros += int64(t[i]-'0') * factor
			factor /= 10
		}
		t = t[i:]
	}
	return micros, t, nil
}

// readStamp reads a date with an era, or a timestamp.
func readStamp(t []byte) (clock, error) {
	c, t, err := readDate(t)
	if err == nil && len(t) > 8 && t[0] == ' ' && t[1] != 'B' {
		c.micros, t, err = readTimeOfDay(t[1:])
	}
	if err != nil {
		return c, err
	}
	t = bytes.TrimPrefix(t, []byte("+00"))
	switch string(t) {
	case "":
	case " BC":
		c.year = 1 - c.year
	default:
		return c, errValue
	}
	return c, nil
}

func (c clock) days() int64 {
	return floorDiv(time.Date(c.year, time.Month(c.month), c.day, 0, 0, 0, 0, time.UTC).Unix(), 86_400)
}

func (c clock) epoch() int64 { return c.days()*86_400_000_000 + c.micros }

// appendISODate appends a date as Java does: years beyond 9999 have a sign.
func appendISODate(b []byte, c clock) []byte {
	year := c.year
	switch {
	case year > 9999:
		b = append(b, '+')
	case year < 0:
		b, year = append(b, '-'), -year
	}
	digits := strconv.Itoa(year)
	b = append(append(b, strings.Repeat("0", max(0, 4-len(digits)))...), digits...)
	return append(b, '-', byte('0'+c.month/10), byte('0'+c.month%10), '-', byte('0'+c.day/10), byte('0'+c.day%10))
}

// appendISOTime appends a time of day with this many digits of the second; negative: as many as there are.
func appendISOTime(b []byte, micros int64, digits int) []byte {
	s := micros / 1_000_000
	two := func(n int64) { b = append(b, byte('0'+n/10), byte('0'+n%10)) }
	two(s / 3600)
	b = append(b, ':')
	two(s / 60 % 60)
	b = append(b, ':')
	two(s % 60)
	fraction := strconv.Itoa(int(1_000_000 + micros%1_000_000))[1:]
	switch {
	case digits > 0:
		b = append(append(b, '.'), fraction[:min(digits, 6)]...)
	case micros%1_000_000 != 0:
		b = append(append(b, '.'), strings.TrimRight(fraction, "0")...)
	}
	return b
}

type (
	naming  = func(kind, string)
	reading = func(func([]byte) (value, error))
)

// temporalDate sets schema and reader of a date.
func temporalDate(c *column, named naming, read reading, mode string) {
	switch mode {
	case "isostring":
		named(text, "io.debezium.time.IsoDate")
		read(func(t []byte) (value, error) {
			d, err := readStamp(t)
			if err != nil {
				return value{}, infinityOr(t, err)
			}
			return value{class: chars, b: append(appendISODate(nil, d), 'Z')}, nil
		})
	case "connect":
		named(int32s, connectDate)
		read(func(t []byte) (value, error) {
			d, err := readStamp(t)
			if err != nil {
				return value{}, infinityOr(t, err)
			}
			return value{class: utilDate, n: d.days() * 86_400_000}, nil
		})
	default:
		named(int32s, "io.debezium.time.Date")
		read(func(t []byte) (value, error) {
			switch string(t) {
			case "infinity":
				return value{class: integer, n: infiniteDay}, nil
			case "-infinity":
				return value{class: integer, n: infiniteDay + 1}, nil
			}
			d, err := readStamp(t)
			return value{class: integer, n: d.days()}, err
		})
	}
}

// infiniteDay is the day that Debezium writes for the date infinity. The one for -infinity is the day after it.
const infiniteDay = -2_147_472_692

func infinityOr(t []byte, err error) error {
	if strings.HasSuffix(string(t), "infinity") {
		return errors.New("it is infinite, which is supported with time.precision.mode adaptive only")
	}
	return err
}

// temporalTime sets schema and reader of a time.
func temporalTime(_ *column, named naming, read reading, mode string, digits int) {
	whole := func(divide, times int64) {
		read(func(t []byte) (value, error) {
			m, _, err := readTimeOfDay(t)
			return value{class: integer, n: m / divide * times}, err
		})
	}
	switch {
	case mode == "isostring":
		named(text, "io.debezium.time.IsoTime")
		read(func(t []byte) (value, error) {
			m, _, err := readTimeOfDay(t)
			return value{class: chars, b: append(appendISOTime(nil, m%86_400_000_000, -1), 'Z')}, err
		})
	case mode == "connect":
		named(int32s, connectTime)
		read(func(t []byte) (value, error) {
			m, _, err := readTimeOfDay(t)
			return value{class: utilDate, n: m / 1000}, err
		})
	case mode == "nanoseconds":
		named(int64s, "io.debezium.time.NanoTime")
		whole(1, 1000)
	case mode == "adaptive" && digits <= 3:
		named(int32s, "io.debezium.time.Time")
		whole(1000, 1)
	default:
		named(int64s, "io.debezium.time.MicroTime")
		whole(1, 1)
	}
}

// temporalTimestamp sets schema and reader of a timestamp without time zone.
func temporalTimestamp(_ *column, named naming, read reading, mode string, digits int) {
	micros := func(t []byte) (int64, error) {
		switch string(t) {
		case "infinity":
			return infiniteMicros, nil
		case "-infinity":
			return finiteMicros, nil
		}
		c, err := readStamp(t)
		return c.epoch(), err
	}
	switch {
	case mode == "isostring":
		named(text, "io.debezium.time.IsoTimestamp")
		read(func(t []byte) (value, error) {
			c, err := readStamp(t)
			if err != nil {
				return value{}, infinityOr(t, err)
			}
			b := append(appendISODate(nil, c), 'T')
			return value{class: chars, b: append(appendISOTime(b, c.micros, -1), 'Z')}, nil
		})
	case mode == "connect":
		named(int64s, connectTimestamp)
		read(func(t []byte) (value, error) {
			m, err := micros(t)
			return value{class: utilDate, n: floorDiv(m, 1000)}, err
		})
	case mode == "nanoseconds":
		named(int64s, nanoTimestamp)
		read(func(t []byte) (value, error) {
			m, err := micros(t)
			switch m {
			case infiniteMicros:
				return value{class: integer, n: 1<<63 - 1}, err
			case finiteMicros:
				return value{class: integer, n: -1 << 63}, err
			}
			return value{class: integer, n: m * 1000}, err
		})
	case mode != "microseconds" && digits <= 3:
		named(int64s, milliTimestamp)
		read(func(t []byte) (value, error) {
			m, err := micros(t)
			return value{class: integer, n: floorDiv(m, 1000)}, err
		})
	default:
		named(int64s, microTimestamp)
		read(func(t []byte) (value, error) {
			m, err := micros(t)
			return value{class: integer, n: m}, err
		})
	}
}

// readZoned returns a timestamptz in ISO 8601, with as many digits of the second as the column has.
func readZoned(t []byte, digits int) (value, error) {
	if strings.HasSuffix(string(t), "infinity") {
		return value{class: chars, b: t}, nil
	}
	c, err := readStamp(t)
	if err != nil {
		return value{}, err
	}
	b := append(appendISODate(make([]byte, 0, 32), c), 'T')
	return value{class: chars, b: append(appendISOTime(b, c.micros, digits), 'Z')}, nil
}

// readTimetz returns a timetz in UTC. Its text has its own offset.
func readTimetz(t []byte) (value, error) {
	m, rest, err := readTimeOfDay(t)
	if err != nil {
		return value{}, err
	}
	offset, err := time.Parse("-07:00", string(rest))
	if err != nil {
		offset, err = time.Parse("-07", string(rest))
	}
	if err != nil {
		return value{}, errors.New("its offset has seconds, which Debezium cannot read and its task fails")
	}
	_, seconds := offset.Zone()
	const day = 86_400_000_000
	m = ((m-int64(seconds)*1_000_000)%day + day) % day
	return value{class: chars, b: append(appendISOTime(nil, m, -1), 'Z')}, nil
}

// span is an interval as PostgreSQL prints it.
type span struct {
	years, months, days, hours, minutes int
	micros                              int64 // of the seconds
}

// readSpan reads 1 year 2 mons -3 days +04:05:06.789.
func readSpan(t []byte) (s span, err error) {
	words := strings.Fields(string(t))
	for i := 0; i < len(words); i++ {
		if strings.Contains(words[i], ":") {
			w, sign := words[i], 1
			if w[0] == '-' || w[0] == '+' {
				if w[0] == '-' {
					sign = -1
				}
				w = w[1:]
			}
			parts := strings.Split(w, ":")
			if len(parts) != 3 {
				return s, errValue
			}
			h, err1 := strconv.Atoi(parts[0])
			m, err2 := strconv.Atoi(parts[1])
			d, err3 := parseDecimal([]byte(parts[2]))
			if errors.Join(err1, err2, err3) != nil || d.scale > 6 {
				return s, errValue
			}
			d, _ = d.rescale(6)
			s.hours, s.minutes, s.micros = sign*h, sign*m, int64(sign)*d.unscaled.Int64()
			continue
		}
		if i+1 == len(words) {
			return s, errValue
		}
		n, err := strconv.Atoi(words[i])
		if err != nil {
			return s, errValue
		}
		i++
		switch {
		case strings.HasPrefix(words[i], "year"):
			s.years = n
		case strings.HasPrefix(words[i], "mon"):
			s.months = n
		case strings.HasPrefix(words[i], "day"):
			s.days = n
		default:
			return s, errValue
		}
	}
	return s, nil
}

// readIntervalMicros returns the microseconds of an interval whose months have the average length.
func readIntervalMicros(t []byte) (value, error) {
	s, err := readSpan(t)
	if err != nil {
		return value{}, err
	}
	days := float64(s.years*12+s.months)*(365.25/12) + float64(s.days)
	seconds := float64(float64(float64(days*24+float64(s.hours))*60+float64(s.minutes))*60 + float64(s.micros)/1e6)
	return value{class: integer, n: int64(seconds * 1e6)}, nil
}

// readIntervalText returns an interval in ISO 8601.
func readIntervalText(t []byte) (value, error) {
	s, err := readSpan(t)
	if err != nil {
		return value{}, err
	}
	b := []byte{'P'}
	for _, part := range []struct {
		n    int
		unit string
	}{{s.years, "Y"}, {s.months, "M"}, {s.days, "DT"}, {s.hours, "H"}, {s.minutes, "M"}} {
		b = append(strconv.AppendInt(b, int64(part.n), 10), part.unit...)
	}
	micros := s.micros
	if micros < 0 {
		b, micros = append(b, '-'), -micros
	}
	b = strconv.AppendInt(b, micros/1_000_000, 10)
	if fraction := micros % 1_000_000; fraction != 0 {
		b = append(append(b, '.'), strings.TrimRight(strconv.Itoa(int(1_000_000 + fraction))[1:], "0")...)
	}
	return value{class: chars, b: append(b, 'S')}, nil
}
