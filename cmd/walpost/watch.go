package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
	"github.com/walpost/walpost/cmd/internal/app"
)

// interval is the value of --watch, which may be left out.
type interval time.Duration

// everyTwo is the interval of a --watch without a value.
const everyTwo = 2 * time.Second

// IsBool makes the value optional.
func (*interval) IsBool() bool { return true }

// Decode reads a value after =.
func (i *interval) Decode(ctx *kong.DecodeContext) error {
	*i = interval(everyTwo)
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		return nil
	}
	text := fmt.Sprint(ctx.Scan.Pop().Value)
	d, err := time.ParseDuration(text)
	if err != nil || d < 100*time.Millisecond {
		return fmt.Errorf("%q: write the time between two looks, 2s for example, and at least 100ms", text)
	}
	*i = interval(d)
	return nil
}

// watcher shows the status of pipelines again and again.
type watcher struct {
	every   time.Duration
	cfgs    []config.Config
	ask     []func(context.Context) pipeline.Status // for each pipeline
	out     io.Writer
	size    func() (width, height int, ok bool) // of the terminal; ok is false if out is none
	colours bool
	json    bool

	mu      sync.Mutex
	answers []answer
}

// answer is the last status of a pipeline.
type answer struct {
	status pipeline.Status
	known  bool
	asked  time.Time // time of the question that has no answer yet
}

// watch shows the status of the pipelines until ctx ends. The questions to each pipeline wait for no other, and a question
// without an answer does not stop the screen.
func (w *watcher) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	w.answers = make([]answer, len(w.ask))
	first := make(chan struct{}, len(w.ask))
	for i := range w.ask {
		w.answers[i].asked = time.Now()
		asking.Go(func() { w.keepAsking(ctx, i, first) })
	}
	soon := time.After(w.every)
	for range w.ask {
		select {
		case <-first:
			continue
		case <-soon:
			soon = nil
		case <-ctx.Done():
			return nil
		}
		break
	}
	if _, _, terminal := w.size(); terminal {
		defer func() { _, _ = io.WriteString(w.out, showCursor+mainScreen) }()
		if _, err := io.WriteString(w.out, otherScreen+hideCursor); err != nil {
			return err
		}
	}
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for n := 0; ; n++ {
		if err := w.show(n); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// keepAsking asks for the status of a pipeline once in each interval.
func (w *watcher) keepAsking(ctx context.Context, i int, first chan<- struct{}) {
	for n := 0; ctx.Err() == nil; n++ {
		asked := time.Now()
		w.mu.Lock()
		w.answers[i].asked = asked
		w.mu.Unlock()
		st := w.ask[i](ctx)
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		w.answers[i] = answer{status: st, known: true}
		w.mu.Unlock()
		if n == 0 {
			first <- struct{}{}
		}
		select {
		case <-time.After(w.every - time.Since(asked)):
		case <-ctx.Done():
		}
	}
}

// statuses returns the last status of each pipeline. One whose question waits for an answer for more than two intervals, and
// more than two seconds, says so.
func (w *watcher) statuses(now time.Time) pipeline.Statuses {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(pipeline.Statuses, len(w.answers))
	for i, a := range w.answers {
		st, silent := a.status, now.Sub(a.asked)
		switch {
		case a.asked.IsZero() || a.known && silent < max(2*w.every, everyTwo):
		case !a.known:
			st = pipeline.Status{Pipeline: w.cfgs[i].Pipeline, Blocked: []string{}}
			unanswered(&st, fmt.Sprintf("no answer from PostgreSQL and Kafka for %s, since this command asks", plain.Duration(silent)))
		default:
			unanswered(&st, fmt.Sprintf("no answer from PostgreSQL and Kafka for %s: the other lines are older than that", plain.Duration(silent)))
		}
		all[i] = st
	}
	return all
}

// unanswered adds the reason why a status is not a present one.
func unanswered(st *pipeline.Status, why string) {
	if st.Verdict != pipeline.NeedsSomeone {
		st.Verdict = pipeline.CannotTell
	}
	st.Blocked = append([]string{why}, st.Blocked...)
	st.BlockedBy = append([]pipeline.Blocker{{Found: why}}, st.BlockedBy...)
}

// The escape codes of a terminal.
const (
	otherScreen, mainScreen = "\x1b[?1049h", "\x1b[?1049l"
	hideCursor, showCursor  = "\x1b[?25l", "\x1b[?25h"
	home                    = "\x1b[H"
	endOfLine, endOfScreen  = "\x1b[K", "\x1b[J"
	red, yellow, usual      = "\x1b[31m", "\x1b[33m", "\x1b[0m"
)

// show writes the n-th look: on a terminal in place of the one before.
func (w *watcher) show(n int) error {
	now := time.Now()
	all := w.statuses(now)
	if w.json {
		b, err := json.Marshal(all)
		if err == nil {
			_, err = w.out.Write(append(b, '\n'))
		}
		return err
	}
	var b strings.Builder
	width, height, terminal := w.size()
	lines := w.lines(all, now, terminal && width < wideEnough)
	if !terminal {
		if n > 0 {
			b.WriteString("\n")
		}
		for _, l := range lines {
			b.WriteString(l.text + "\n")
		}
		_, err := io.WriteString(w.out, b.String())
		return err
	}
	b.WriteString(home)
	if more := len(lines) - height; more > 0 {
		lines = append(lines[:max(0, height-1)], shownLine{text: fmt.Sprintf("… %d more lines: make the window larger, or choose a pipeline with -p", more+1)})
	}
	for i, l := range lines {
		text := plain.Cut(l.text, width)
		if w.colours && l.colour != "" {
			text = l.colour + text + usual
		}
		b.WriteString(text + endOfLine)
		if i < len(lines)-1 {
			b.WriteString("\r\n")
		}
	}
	b.WriteString(endOfScreen)
	_, err := io.WriteString(w.out, b.String())
	return err
}

// shownLine is a line of the screen.
type shownLine struct{ text, colour string }

// colourOf returns the colour of a verdict; "" is the terminal's usual one.
func colourOf(v pipeline.Verdict) string {
	switch v {
	case pipeline.NeedsSomeone:
		return red
	case pipeline.CannotTell:
		return yellow
	}
	return ""
}

// wideEnough is the width in letters of a terminal on which the table's last column has room.
const wideEnough = 140

// lines returns the lines of a look: the status of one pipeline, or a table of several. In a narrow one the last column,
// what is wrong, is a line below its row.
func (w *watcher) lines(all pipeline.Statuses, now time.Time, narrow bool) []shownLine {
	head := fmt.Sprintf("walpost status at %s, every %s", now.UTC().Format("2006-01-02 15:04:05 UTC"), plain.Duration(w.every))
	var b bytes.Buffer
	if len(all) == 1 {
		status(sentences{&b, &w.cfgs[0]}, all[0])
		colour := colourOf(all[0].Verdict)
		lines, facts := []shownLine{{text: head}, {"verdict    " + sayVerdict(all[0].Verdict), colour}}, []shownLine{}
		for line := range strings.Lines(b.String()) {
			line = strings.TrimSuffix(line, "\n")
			switch name, _, _ := strings.Cut(line, " "); name { // what is wrong comes first: a low window cuts the rest
			case "blocked":
				lines = append(lines, shownLine{line, colour})
			case "means", "run":
				lines = append(lines, shownLine{text: line})
			default:
				facts = append(facts, shownLine{text: line})
			}
		}
		return append(lines, facts...)
	}
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	rows := [][]string{{"PIPELINE", "VERDICT", "SLOT", "LAG", "LAG TIME", "RETAINED", "LEFT", "DEAD", "WHAT IS WRONG"}}
	for i := range all {
		rows = append(rows, tableRow(&all[i]))
	}
	wrong := len(rows[0]) - 1
	for _, row := range rows {
		if narrow {
			row = row[:wrong]
		}
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	_ = table.Flush()
	lines := []shownLine{{text: head}}
	for i, line := range slices.Collect(strings.Lines(b.String())) {
		l := shownLine{text: strings.TrimRight(line, " \n")}
		if i > 0 {
			l.colour = colourOf(all[i-1].Verdict)
		}
		lines = append(lines, l)
		if narrow && i > 0 && rows[i][wrong] != nothing {
			lines = append(lines, shownLine{"  " + rows[i][wrong], l.colour})
		}
	}
	return append(lines, shownLine{text: "`walpost -p NAME status` says more about one of them"})
}

// sayVerdict returns the verdict in words.
func sayVerdict(v pipeline.Verdict) string { return strings.ReplaceAll(string(v), "_", " ") }

// nothing is what is wrong with a pipeline that works.
const nothing = "nothing"

// tableRow returns the cells of a pipeline in the table. What is not known is -.
func tableRow(st *pipeline.Status) []string {
	slot, lag, seconds, retained, left, dead := "-", "-", "-", "-", "-", "-"
	size := func(n *int64) string {
		if n == nil {
			return "-"
		}
		return plain.Size(*n)
	}
	duration := func(s float64) string { return plain.Duration(time.Duration(s * float64(time.Second))) }
	switch {
	case st.Backlog != nil:
		slot, lag = "polled", fmt.Sprintf("%d rows", st.Backlog.Pending)
		seconds, dead = duration(st.Backlog.OldestSeconds), fmt.Sprint(st.Backlog.Failed)
	case st.Slot == nil || st.Slot.Exists == nil:
	case !*st.Slot.Exists:
		slot = "missing"
	default:
		slot, lag, retained = "not active", size(st.LagBytes), size(st.RetainedBytes)
		if st.Slot.Active {
			slot = "active"
		}
	}
	if st.LagSeconds != nil {
		seconds = duration(*st.LagSeconds)
	}
	if st.SlotSeconds != nil {
		left = duration(*st.SlotSeconds)
	}
	if st.DeadLetters != nil {
		dead = fmt.Sprint(*st.DeadLetters)
	}
	wrong := nothing
	if len(st.BlockedBy) > 0 {
		wrong = st.BlockedBy[0].Found
		if more := len(st.BlockedBy) - 1; more > 0 {
			wrong = fmt.Sprintf("%s (and %d more)", wrong, more)
		}
	} else if len(st.Gaps) > 0 {
		wrong = "rows may be missing in Kafka: replay them"
	}
	return []string{plain.Line(st.Pipeline), sayVerdict(st.Verdict), slot, lag, seconds, retained, left, dead, plain.Line(wrong)}
}

// watch shows the status of a group until SIGINT.
func (p *process) watch(every time.Duration, asJSON bool, cfgs []config.Config, group pipeline.Group) error {
	w := &watcher{every: every, cfgs: cfgs, out: p.stdout, colours: p.getenv("NO_COLOR") == "", json: asJSON}
	w.size = func() (width, height int, ok bool) {
		if asJSON {
			return 0, 0, false
		}
		return app.Terminal(p.stdout)
	}
	for _, pl := range group {
		w.ask = append(w.ask, pl.Status)
	}
	return w.watch(p.ctx)
}
