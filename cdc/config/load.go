package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/identity"
)

// document is a configuration file. It has the keys of one pipeline, or a list of pipelines and the keys that they have in
// common.
type document struct {
	Config    `yaml:",inline"`
	Pipelines []entry `yaml:"pipelines"`
}

// entry decodes the keys of one of several pipelines. It is called after the common keys are known, and overrides them.
type entry func(any) error

// UnmarshalYAML keeps the decoder for later.
func (e *entry) UnmarshalYAML(decode func(any) error) error {
	*e = decode
	return nil
}

// Load reads the YAML file (none if path is empty), then the environment, and validates the result. It returns a Config for
// each pipeline that the key pipelines lists, or one Config if there is no such key. A pipeline of several takes the keys
// that it does not set from the top level, and its own variables contain its name: WALPOST_ORDERS_SOURCE_URL. The error
// contains every mistake, each with the pipeline, the key and what to write instead.
func Load(path string, getenv func(string) string) ([]Config, error) {
	var text []byte
	if path != "" {
		var err error
		if text, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("read configuration: %w: name the file with --config", err)
		}
	}
	return parse(path, text, getenv)
}

// parse does what Load does, with the name and the text of a file.
func parse(file string, text []byte, getenv func(string) string) ([]Config, error) {
	doc, from := document{Config: Default()}, origins{}
	errs := mistakes(text)
	wrong := len(errs) > 0
	var parser error
	if len(strings.TrimSpace(string(text))) > 0 {
		parser = yaml.UnmarshalWithOptions(text, &doc, yaml.Strict())
	}
	var keys map[string]any
	_ = yaml.Unmarshal(text, &keys) // mistakes and parser have the error
	from.file(keys, "file "+file)
	errs = append(errs, readEnvironment(&doc.Config, environment, getenv)...)
	from.environment(environment, getenv)
	cfgs := []Config{from.loaded(doc.Config)}
	if doc.Pipelines != nil {
		cfgs = nil
	}
	for i, decode := range doc.Pipelines {
		cfg, from := doc.Config, maps.Clone(from)
		if decode != nil {
			parser = errors.Join(parser, decode(&cfg))
			var keys map[string]any
			_ = decode(&keys)
			from.file(keys, fmt.Sprintf("file %s, pipelines[%d]", file, i))
		}
		errs = append(errs, readEnvironment(&cfg, cfg.environment(), getenv)...)
		from.environment(cfg.environment(), getenv)
		cfg.several = true
		cfgs = append(cfgs, from.loaded(cfg))
	}
	if parser != nil && !wrong { // the parser stops at the first mistake, and its error does not always name the place
		errs = append(errs, unreadable(parser))
	}
	// A key that could not be read has its default or zero value. Validate would report that value as a second mistake.
	switch {
	case len(errs) > 0:
	case doc.Pipelines == nil:
		errs = append(errs, doc.Validate())
	default:
		errs = append(errs, doc.together(cfgs)...)
	}
	return cfgs, errors.Join(errs...)
}

// readEnvironment sets the keys whose variables, with the prefix, have a value.
func readEnvironment(cfg *Config, prefix string, getenv func(string) string) (errs []error) {
	eachKey(reflect.ValueOf(cfg).Elem(), nil, func(path []string, v reflect.Value, tag reflect.StructTag) {
		name := envName(prefix, path)
		s := getenv(name)
		if s == "" {
			return
		}
		if v.Kind() == reflect.Slice && !strings.HasPrefix(s, "[") {
			s = "[" + s + "]"
		}
		var err error
		if v.Kind() == reflect.String {
			v.SetString(s)
		} else {
			err = decode([]byte(s), v)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("environment %s: %s", name, wrongValue(s, v, tag)))
		}
	})
	return errs
}

// Commands returns the text with commands that can be copied and run: if the file has several pipelines, each walpost
// command in backquotes names this one.
func (c *Config) Commands(text string) string {
	if !c.several {
		return text
	}
	named := "`walpost -p " + c.Pipeline + " "
	return strings.ReplaceAll(strings.ReplaceAll(text, named, "`walpost "), "`walpost ", named) // some of them may name it already
}

// Variable returns the name of the variable that only this one of several pipelines reads for the key:
// WALPOST_ORDERS_ADMIN_URL.
func (c *Config) Variable(key string) string { return c.environment() + key }

// environment returns the prefix of the variables that only this one of several pipelines reads: WALPOST_ORDERS_.
func (c *Config) environment() string {
	return environment + strings.ToUpper(strings.ReplaceAll(c.Pipeline, "-", "_")) + "_"
}

// together returns the mistakes of each of several pipelines, and the conflicts between them in one process.
func (d *document) together(cfgs []Config) (errs []error) {
	if len(cfgs) == 0 {
		errs = append(errs, errors.New("pipelines: list at least one"))
	}
	if d.Pipeline != "" {
		errs = append(errs, fmt.Errorf("pipeline: %q: each pipeline needs its own name: write it in the list under pipelines", d.Pipeline))
	}
	variables := map[string]string{}
	eachKey(reflect.ValueOf(&d.Config).Elem(), nil, func(path []string, _ reflect.Value, _ reflect.StructTag) {
		variables[envName(environment, path)] = "all pipelines"
	})
	for i := range cfgs {
		c, name := &cfgs[i], cfgs[i].label(i)
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf(name+": "+format, args...))
		}
		if err := c.validate(c.environment()); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				bad("%s", line)
			}
		}
		if c.HTTP != d.HTTP {
			bad("http: the process has one address: write it at the top level, not in one of the pipelines")
		}
		if c.Page != d.Page {
			bad("page: the process has one page: write it at the top level, not in one of the pipelines")
		}
		if c.Pprof != d.Pprof {
			bad("pprof: the process has one address: write it at the top level, not in one of the pipelines")
		}
		if c.ShutdownTimeout != d.ShutdownTimeout {
			bad("shutdown_timeout: the process has one: write it at the top level, not in one of the pipelines")
		}
		for j := range i {
			c.beside(&cfgs[j], bad)
		}
		if slices.ContainsFunc(cfgs[:i], func(o Config) bool { return o.Pipeline == c.Pipeline }) {
			continue // two pipelines of one name read the same variables; beside has reported the name
		}
		eachKey(reflect.ValueOf(c).Elem(), nil, func(path []string, _ reflect.Value, _ reflect.StructTag) {
			variable := envName(c.environment(), path)
			if of := variables[variable]; of != "" {
				bad("pipeline: %[2]s already reads the variable %[1]s: give this pipeline another name", variable, of)
			}
			variables[variable] = name
		})
	}
	return errs
}

// label returns the text that names one of several pipelines in errors: pipeline orders, or pipelines[1] without a name.
func (c *Config) label(i int) string {
	if c.Pipeline == "" {
		return "pipelines[" + strconv.Itoa(i) + "]"
	}
	return "pipeline " + c.Pipeline
}

// beside reports with bad everything that two pipelines share and must not share.
func (c *Config) beside(o *Config, bad func(format string, args ...any)) {
	if c.Pipeline == o.Pipeline && c.Pipeline != "" {
		bad("pipeline: two pipelines have this name and would share the state topic %s: give each its own name", c.StateTopic())
	}
	servers, database := c.Source.at()
	theirs, theirDatabase := o.Source.at()
	sameServer := overlap(servers, theirs)
	if sameServer && c.Source.Slot == o.Source.Slot {
		bad("source.slot: pipeline %[2]s reads %[1]q on the same server, and a slot's name is unique on a server, across its databases: give each pipeline its own slot", c.Source.Slot, o.Pipeline)
	}
	if !overlap(c.Kafka.Brokers, o.Kafka.Brokers) {
		return
	}
	for _, topic := range c.topics() {
		if sameServer && database == theirDatabase && c.Source.Table == o.Source.Table && slices.Contains(o.topics(), topic) {
			bad("kafka.topic: pipeline %s already publishes %s to %s, so each row would be there twice: choose another topic, or remove one of the two", o.Pipeline, c.Source.Table, topic)
		}
		if topic == o.DeadLetterTopic() {
			bad("kafka.topic: %s is the dead letter topic of pipeline %s: choose another topic", topic, o.Pipeline)
		}
	}
	if c.DeadLetterTopic() == o.DeadLetterTopic() && c.Pipeline != o.Pipeline {
		bad("poison.topic: pipeline %[2]s has %[1]q too: give each pipeline its own topic, or leave the key empty", c.DeadLetterTopic(), o.Pipeline)
	}
	if slices.Contains(o.topics(), c.DeadLetterTopic()) {
		bad("poison.topic: pipeline %[2]s publishes to %[1]q: choose a topic for dead letters alone", c.DeadLetterTopic(), o.Pipeline)
	}
}

// at returns the place of the outbox that the URL names: all servers, as host:port, and the database.
func (s *Source) at() (servers []string, database string) {
	cfg, err := identity.NewPostgres("source.url", s.URL, zerolog.Nop()).Target()
	if s.URL == "" || err != nil {
		return nil, "" // Validate reports it
	}
	at := func(host string, port uint16) {
		servers = append(servers, net.JoinHostPort(strings.ToLower(host), strconv.Itoa(int(port))))
	}
	at(cfg.Host, cfg.Port)
	for _, f := range cfg.Fallbacks {
		at(f.Host, f.Port)
	}
	return servers, cfg.Database
}

// overlap reports whether the two lists have an entry in common.
func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

const environment = "WALPOST_"

// envName returns the name of the variable for the key at path.
func envName(prefix string, path []string) string {
	return prefix + strings.ToUpper(strings.Join(path, "_"))
}

// eachKey calls f for each key that holds a value, and for none that holds other keys.
func eachKey(v reflect.Value, path []string, f func(path []string, v reflect.Value, tag reflect.StructTag)) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if !field.IsExported() || field.Tag.Get("yaml") == "-" {
			continue
		}
		p := slices.Clone(path)
		if key, how, _ := strings.Cut(field.Tag.Get("yaml"), ","); how != "inline" {
			p = append(p, key)
		}
		if v.Field(i).Kind() == reflect.Struct {
			eachKey(v.Field(i), p, f)
			continue
		}
		f(p, v.Field(i), field.Tag)
	}
}
