package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/walpost/walpost/cdc/config"
	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/pipeline"
	"github.com/walpost/walpost/cdc/plain"
)

type configCmd struct {
	Check   configCheckCmd   `cmd:"" help:"Read the file and the environment, and print every mistake with its key and what to write. It connects to nothing. Exit code 0: there is no mistake; 1: there is one."`
	Show    configShowCmd    `cmd:"" help:"Print every key with its value and where the value is from: default, the file, or a variable. Secrets are not shown."`
	Example configExampleCmd `cmd:"" help:"Print an example of the file, with every key."`
}

type configCheckCmd struct{}

func (c *configCheckCmd) Run(p *process) error {
	cfgs, err := p.configs()
	if err != nil {
		return err
	}
	var errs []error
	for _, cfg := range cfgs {
		of := ""
		if len(cfgs) > 1 {
			of = "pipeline " + cfg.Pipeline + ": "
		}
		if _, err := pipeline.New(cfg, pipeline.Options{}); err != nil { // options under debezium have rules, too
			errs = append(errs, errors.New(of+strings.ReplaceAll(err.Error(), "\n", "\n"+of)))
		}
		for _, said := range cfg.Kafka.Kafka.Warnings(identity.Keys, cfg.Kafka.Brokers) {
			p.warn(of + said)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s := "s"
	if len(cfgs) == 1 {
		s = ""
	}
	p.say("ok: %d pipeline%s: %s", len(cfgs), s, names(cfgs))
	return nil
}

type configShowCmd struct {
	Changed bool `help:"Print only the keys whose values are not the defaults."`
	JSON    bool `name:"json" help:"Print JSON: a list of the pipelines with their keys."`
}

// shownConfig is the configuration of a pipeline in JSON.
type shownConfig struct {
	Pipeline string           `json:"pipeline"`
	Settings []config.Setting `json:"settings"`
}

func (c *configShowCmd) Run(p *process) error {
	cfgs, err := p.configs()
	if err != nil {
		return err
	}
	var all []shownConfig
	for i := range cfgs {
		one := shownConfig{cfgs[i].Pipeline, []config.Setting{}}
		for _, s := range cfgs[i].Settings() {
			if !c.Changed || s.Changed() {
				one.Settings = append(one.Settings, s)
			}
		}
		all = append(all, one)
	}
	if c.JSON {
		return p.json(all)
	}
	for i, one := range all {
		if i > 0 {
			p.say("")
		}
		if len(all) > 1 {
			p.say("pipeline %s", plain.Line(one.Pipeline))
		}
		if err := settings(p.stdout, one.Settings); err != nil {
			return err
		}
	}
	return nil
}

// settings prints a line for each key.
func settings(out io.Writer, all []config.Setting) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, s := range all {
		fmt.Fprintf(table, "%s\t%s\t%s\n", s.Key, plain.Cut(s.Value, longestValue), plain.Line(s.Origin))
	}
	return table.Flush()
}

// longestValue is the length in letters to which a value is cut: one long value would move the last column out of sight.
const longestValue = 160

type configExampleCmd struct{}

func (c *configExampleCmd) Run(p *process) error {
	_, err := io.WriteString(p.stdout, strings.TrimSuffix(config.Example(), "\n")+"\n")
	return err
}
