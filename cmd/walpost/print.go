package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cmd/internal/app"
)

// say prints a line for people.
func (p *process) say(format string, args ...any) { fmt.Fprintf(p.stdout, format+"\n", args...) }

// json prints a value as indented JSON.
func (p *process) json(v any) error {
	enc := json.NewEncoder(p.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// show prints a value for each pipeline: as JSON, or with print and an empty line between two.
func show[S ~[]T, T any](p *process, asJSON bool, cfgs []config.Config, all S, print func(io.Writer, T)) error {
	if asJSON {
		return p.json(all)
	}
	for i, one := range all {
		if i > 0 {
			p.say("")
		}
		print(sentences{p.stdout, &cfgs[i]}, one)
	}
	return nil
}

// exit returns exit code 1 if somebody has to act, otherwise 2 if something is wrong or not known, and otherwise nil.
func exit(act, unclear bool) error {
	switch {
	case act:
		return app.ExitError(1)
	case unclear:
		return app.ExitError(2)
	}
	return nil
}

// confirm asks the operator to type the pipeline's name. It returns an error with the text otherwise for any other answer.
func (p *process) confirm(name, otherwise, what string, args ...any) error {
	fmt.Fprintf(p.stdout, what+" Type the pipeline's name to continue: ", args...)
	answer, _ := bufio.NewReader(p.stdin).ReadString('\n')
	if strings.TrimSpace(answer) != name {
		return errors.New(otherwise)
	}
	return nil
}

// steps returns a Progress that prints each step with its SQL when the step begins, and to stderr how far a long one is.
func steps(out, stderr io.Writer) pipeline.Progress {
	progress := app.NewProgress(stderr)
	out = progress.Beside(out)
	return func(s pipeline.Step) {
		if s.Total > 0 {
			if progress.At(s.Done, s.Total, s.Unit); s.Done >= s.Total {
				progress.Close()
			}
			return
		}
		progress.Begin()
		fmt.Fprintln(out, s.What)
		for _, sql := range s.SQL {
			fmt.Fprintf(out, "    %s;\n", sql)
		}
	}
}
