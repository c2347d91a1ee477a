package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
)

type doctorCmd struct {
	JSON bool `name:"json" help:"Print JSON: one object, or a list of them where the file has several pipelines."`
}

func (c *doctorCmd) Run(p *process) error {
	cfgs, group, err := p.group()
	if err != nil {
		return err
	}
	all := group.Examine(p.ctx)
	if err := show(p, c.JSON, cfgs, all, examination); err != nil {
		return err
	}
	return diagnosis(all)
}

// diagnosis returns the exit code of the worst finding: 0 nothing to do, 2 a warning or a check without an answer, 1 a problem.
func diagnosis(all pipeline.Examinations) error {
	has := func(severities ...cdc.Severity) bool {
		return slices.ContainsFunc(all, func(e pipeline.Examination) bool { return slices.Contains(severities, e.Severity) })
	}
	return exit(has(cdc.Problem), has(cdc.Warning, cdc.Unknown))
}

// sides are the groups of findings, in the order in which they are printed.
var sides = []struct {
	side  cdc.Side
	title string
}{{cdc.InPostgreSQL, "PostgreSQL"}, {cdc.InKafka, "Kafka"}, {cdc.Between, "between the two"}}

// examination prints the findings of one pipeline in groups, a line for each. Those that ask something of an operator have the
// lines means and run.
func examination(out io.Writer, e pipeline.Examination) {
	row := func(name, text string) { fmt.Fprintf(out, "%-10s %s\n", name, text) }
	row("pipeline", e.Pipeline)
	counts := map[cdc.Severity]int{}
	for _, group := range sides {
		titled := false
		for _, f := range e.Findings {
			if f.Side != group.side {
				continue
			}
			if !titled {
				fmt.Fprintf(out, "\n%s\n", group.title)
				titled = true
			}
			counts[f.Severity]++
			row(string(f.Severity), f.Check+": "+f.Found)
			for _, part := range [][2]string{{"  means", f.Means}, {"  run", strings.TrimPrefix(f.Run, "run ")}} {
				if part[1] != "" {
					row(part[0], part[1])
				}
			}
		}
	}
	fmt.Fprintf(out, "\n%-10s %s, %s, %d unknown, %s, %d ok\n", "found", plain.Count(counts[cdc.Problem], "problem", "problems"), plain.Count(counts[cdc.Warning], "warning", "warnings"),
		counts[cdc.Unknown], plain.Count(counts[cdc.Note], "note", "notes"), counts[cdc.OK])
}
