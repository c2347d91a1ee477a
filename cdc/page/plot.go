package page

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
)

// plot is a picture of the last hour, drawn by the template. Its coordinates are 0 to 1000 in both directions, and the browser stretches
// them.
type plot struct {
	ID, Title string
	Top       string // the number at the upper edge
	Began     string // how long ago the left edge is
	Said      string // the picture in words
	Lines     []line
	Empty     bool
}

// line is one curve. A gap in the numbers is a gap in the curve.
type line struct {
	Name, Path string
	Last       string
}

const across = 1000.0

// curve has the numbers of a line; NaN where a number is not known.
type curve struct {
	name   string
	values []float64
}

// newPlot draws the curves over a time that ends now. show writes a number for people.
func newPlot(id, title string, at []time.Time, now time.Time, curves []curve, show func(float64) string) plot {
	span := 5 * time.Minute // a young relay has few points
	if len(at) > 0 {
		span = min(max(span, now.Sub(at[0]).Round(time.Minute)), time.Hour)
	}
	p := plot{ID: id, Title: title, Began: plain.Duration(span) + " ago", Empty: true}
	top := 0.0
	for _, c := range curves {
		for _, v := range c.values {
			if !math.IsNaN(v) {
				top, p.Empty = max(top, v), false
			}
		}
	}
	if p.Empty {
		p.Said = "Nothing is known yet: a point is added every 15 s."
		return p
	}
	if top == 0 {
		top = 1
	}
	p.Top = show(top)
	var said []string
	for _, c := range curves {
		var path strings.Builder
		pen := "M"
		last, most := "unknown", 0.0
		for i, v := range c.values {
			if math.IsNaN(v) || now.Sub(at[i]) > span {
				pen = "M"
				continue
			}
			x := across * (1 - min(now.Sub(at[i]).Seconds()/span.Seconds(), 1))
			fmt.Fprintf(&path, "%s%.0f %.0f", pen, x, across*(1-v/top))
			if pen == "M" && (i+1 == len(c.values) || math.IsNaN(c.values[i+1])) {
				path.WriteString("h1") // a point alone
			}
			pen = "L"
			most = max(most, v)
			if last = "unknown"; i == len(c.values)-1 {
				last = show(v)
			}
		}
		p.Lines = append(p.Lines, line{c.name, path.String(), last})
		said = append(said, fmt.Sprintf("%s: %s now, %s at most", c.name, last, show(most)))
	}
	p.Said = strings.Join(said, "; ") + "."
	return p
}

// plots returns the pictures of the last hour.
func plots(points []pipeline.Point, now time.Time) []plot {
	at := make([]time.Time, len(points))
	rows, p50, p99, lag := curve{name: "rows a second"}, curve{name: "p50"}, curve{name: "p99"}, curve{name: "behind"}
	seconds := func(d *time.Duration) float64 {
		if d == nil {
			return math.NaN()
		}
		return d.Seconds()
	}
	for i, p := range points {
		at[i] = p.At
		rows.values = append(rows.values, p.Rows)
		p50.values, p99.values = append(p50.values, seconds(p.P50)), append(p99.values, seconds(p.P99))
		lag.values = append(lag.values, seconds(p.Lag))
	}
	duration := func(v float64) string {
		if v > 0 && v < 0.001 {
			return fmt.Sprintf("%.1f ms", v*1000)
		}
		return plain.Duration(secs(v))
	}
	rate := func(v float64) string {
		if v < 10 {
			return fmt.Sprintf("%.1f", v)
		}
		return number(int64(math.Round(v)))
	}
	return []plot{
		newPlot("rate", "Rows a second", at, now, []curve{rows}, rate),
		newPlot("latency", "Latency, from commit to Kafka", at, now, []curve{p50, p99}, duration),
		newPlot("lag", "How far behind", at, now, []curve{lag}, duration),
	}
}

// bar returns a position on the scale of all of them, from 0 to 1000: the end of the WAL is on the right.
func bar(bytes, most int64) int {
	scale := math.Log1p(float64(max(most, 1<<20)))
	return int(math.Round(across * (1 - math.Log1p(float64(bytes))/scale)))
}
