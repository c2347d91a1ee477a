package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"

	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
)

type tailCmd struct {
	Last    int    `short:"n" default:"10" help:"Begin with this many of the newest events."`
	Key     string `help:"Print only the events of this key."`
	Type    string `help:"Print only the events of this type."`
	Payload bool   `help:"Print the payloads, too. They are the application's data."`
	Follow  bool   `default:"true" negatable:"" help:"Wait for further events until SIGINT. The default; --no-follow ends after the newest ones."`
	JSON    bool   `name:"json" help:"Print a JSON object for each event, on one line."`
}

func (c *tailCmd) Run(p *process) error {
	if c.Last < 0 {
		return errors.New("--last: write the number of events, 10 for example, or 0 for new events only")
	}
	_, group, err := p.group()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	var printing sync.Mutex
	var all sync.WaitGroup
	errs := make([]error, len(group))
	for i, pl := range group {
		name := ""
		if len(group) > 1 {
			name = pl.Name()
		}
		all.Go(func() {
			o := pipeline.TailOptions{Last: c.Last, Key: c.Key, Type: c.Type, Payload: c.Payload, Follow: c.Follow}
			errs[i] = pl.Tail(ctx, o, func(e pipeline.Event) error {
				line, err := c.line(name, e)
				if err != nil {
					return err
				}
				printing.Lock()
				defer printing.Unlock()
				_, err = fmt.Fprintln(p.stdout, line)
				return err
			})
			if c.Follow && p.ctx.Err() != nil && errors.Is(errs[i], context.Canceled) {
				errs[i] = nil // an interrupt is how a tail ends, in a request too
			}
			if errs[i] != nil && name != "" {
				errs[i] = fmt.Errorf("pipeline %s: %w", name, errs[i])
			}
			if errs[i] != nil && c.Follow {
				cancel() // the others end, so that the error is seen
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// line returns an event as one line, with the name of its pipeline if it is one of several.
func (c *tailCmd) line(name string, e pipeline.Event) (string, error) {
	if c.JSON {
		return jsonLine(name, e)
	}
	key := "-"
	if e.Key != nil {
		key = plain.Line(string(e.Key))
	}
	how, lag := "", "-"
	if e.Lag != nil {
		lag = plain.Duration(*e.Lag)
	}
	if e.Replay {
		how = "  replayed"
	}
	if e.Redriven {
		how = "  redriven"
	}
	if name != "" {
		name += "  "
	}
	line := fmt.Sprintf("%s%s  %s/%d/%d  key %s  %s  id %s  lag %s%s", name, e.Time.UTC().Format("2006-01-02T15:04:05.000Z"), e.Topic, e.Partition, e.Offset,
		key, cmp.Or(plain.Line(e.Type), "-"), plain.Line(e.ID), lag, how)
	if c.Payload {
		line += "  " + plain.Cut(string(e.Payload), math.MaxInt)
	}
	return line, nil
}

// jsonLine returns an event as a JSON object, with the name of its pipeline if it is one of several.
func jsonLine(name string, e pipeline.Event) (string, error) {
	b, err := json.Marshal(e)
	if err != nil || name == "" {
		return string(b), err
	}
	quoted, err := json.Marshal(name)
	return `{"pipeline":` + string(quoted) + "," + strings.TrimPrefix(string(b), "{"), err
}
