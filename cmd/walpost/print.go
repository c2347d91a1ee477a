package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/walpost/walpost/cdc/pipeline"
)

// say prints a line for people.
func (p *process) say(format string, args ...any) { fmt.Fprintf(p.stdout, format+"\n", args...) }

// confirm asks for the pipeline's name, and returns the error otherwise unless that is the answer.
func (p *process) confirm(name, otherwise, what string, args ...any) error {
	fmt.Fprintf(p.stdout, what+" Type the pipeline's name to go on: ", args...)
	answer, _ := bufio.NewReader(p.stdin).ReadString('\n')
	if strings.TrimSpace(answer) != name {
		return errors.New(otherwise)
	}
	return nil
}

// steps prints each step when it begins, with its SQL.
func steps(out io.Writer) pipeline.Progress {
	return func(s pipeline.Step) {
		fmt.Fprintln(out, s.What)
		for _, sql := range s.SQL {
			fmt.Fprintf(out, "    %s;\n", sql)
		}
	}
}

func size(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
