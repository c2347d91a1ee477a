package debezium

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
)

// Connector is the configuration of a connector of Kafka Connect, or of Debezium Server.
type Connector struct {
	Name   string
	Server bool // of Debezium Server: the options keep their prefixes
	// Version is Debezium's version, 3.6.1.Final for example; empty if the input does not tell it.
	Version string

	options pairs
	unknown []error // about names beside the options
}

// Options returns the names of the options in the order of the input.
func (c *Connector) Options() []string { return c.options.names() }

// Option returns the value of an option; empty if the input does not have it.
func (c *Connector) Option(name string) string {
	value, _ := c.options.get(name)
	return value
}

// LargestInput is the largest number of bytes of an input. Connect itself limits a request to less.
const LargestInput = 8 << 20

// mostOptions is the largest number of options of an input.
const mostOptions = 5000

var errOptions = fmt.Errorf("the input has more than %d options: name the configuration of one connector", mostOptions)

// ReadConnector reads the configuration of a connector: JSON with name and config as it is sent to Connect, a bare map of
// options, the answer of GET /connectors/NAME, Strimzi's KafkaConnector, or a .properties file of Connect standalone or of
// Debezium Server. The error has one sentence for each mistake; it contains no value.
func ReadConnector(text []byte) (*Connector, error) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	trimmed := bytes.TrimSpace(text)
	switch {
	case len(text) > LargestInput:
		return nil, fmt.Errorf("the input has more than %d bytes: name the configuration of one connector", LargestInput)
	case len(trimmed) == 0:
		return nil, errors.New("the input is empty: name the JSON of a connector, its .properties file, or Debezium Server's application.properties")
	case trimmed[0] == '[':
		return nil, errors.New("the input is a JSON list: write the configuration of one connector, an object with name and config")
	case trimmed[0] == '{':
		return readJSON(trimmed)
	case looksLikeYAML(trimmed):
		return readStrimzi(trimmed)
	}
	options, err := readProperties(string(text))
	if err != nil {
		return nil, err
	}
	if len(options) == 0 {
		return nil, errors.New("the input has no options: name the JSON of a connector, its .properties file, or Debezium Server's application.properties")
	}
	return (&Connector{options: options}).named(), nil
}

// named sets Name and Server from the options.
func (c *Connector) named() *Connector {
	c.Server = slices.ContainsFunc(c.options, func(s pair) bool { return strings.HasPrefix(withoutProfile(s.name), "debezium.") })
	if name := c.Option("name"); name != "" {
		c.Name = name
	}
	return c
}

// readJSON reads the JSON of a connector.
func readJSON(text []byte) (*Connector, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("the JSON is not UTF-8: save the file as UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	top, err := readObject(d, levels)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is more text after the JSON object: write one connector")
		}
	}
	if err != nil {
		return nil, jsonMistake(text, err, d.InputOffset())
	}
	c := &Connector{}
	config, wrapped := top.get("config")
	if info, ok := top.get("info"); !wrapped && ok && info.object != nil { // an entry of GET /connectors?expand=info
		top = info.object
		config, wrapped = top.get("config")
	}
	if name, ok := top.get("name"); ok && name.object == nil {
		c.Name = name.text
	}
	if wrapped {
		if config.object == nil {
			return nil, errors.New("config: it is no JSON object: write the options of the connector there, each with its value")
		}
		top = config.object
	}
	var errs []error
	for _, m := range top {
		switch {
		case m.value.null: // Connect reads it as absent
		case m.value.object != nil || m.value.list:
			errs = append(errs, fmt.Errorf("%s: the value is no text, number or boolean, and Connect takes no other: write the value in quotes", m.name))
		case len(c.options) == mostOptions:
			return nil, errOptions
		default:
			if _, twice := c.options.get(m.name); twice {
				errs = append(errs, fmt.Errorf("%s: the option is there twice: keep one", m.name))
			}
			c.options.set(m.name, m.value.text)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if len(c.options) == 0 {
		return nil, errors.New("the JSON has no options: write the configuration of a connector, an object with name and config")
	}
	return c.named(), nil
}

// optionTree is a JSON object with its members in their order.
type optionTree []treeMember

type treeMember struct {
	name  string
	value treeValue
}

// treeValue is a JSON value: an object, a list whose elements are not kept, null, or the text of a scalar.
type treeValue struct {
	object optionTree
	list   bool
	null   bool
	text   string
}

func (o optionTree) get(name string) (treeValue, bool) {
	for _, m := range o {
		if m.name == name {
			return m.value, true
		}
	}
	return treeValue{}, false
}

// levels is how deep an object is read: name, info, config. Connect takes no deeper one.
const levels = 4

// readObject reads an object from its { on. Below the levels, an object is treated as a list, which no option may be.
func readObject(d *json.Decoder, levels int) (optionTree, error) {
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	o := optionTree{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		m := treeMember{name: name.(string)}
		switch raw = bytes.TrimSpace(raw); raw[0] {
		case '{':
			if levels == 1 {
				m.value.list = true
				break
			}
			inner := json.NewDecoder(bytes.NewReader(raw))
			inner.UseNumber()
			if m.value.object, err = readObject(inner, levels-1); err != nil {
				return nil, err
			}
		case '[':
			m.value.list = true
		case '"':
			if err := json.Unmarshal(raw, &m.value.text); err != nil {
				return nil, err
			}
		case 'n':
			m.value.null = true
		default:
			m.value.text = string(raw)
		}
		o = append(o, m)
	}
	_, err := d.Token()
	return o, err
}

// jsonMistake returns the error of text that is no JSON, with the line and without the text, which may be a secret.
func jsonMistake(text []byte, err error, offset int64) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		offset = int64(len(text))
	default:
		return err
	}
	line := 1 + bytes.Count(text[:min(max(offset, 0), int64(len(text)))], []byte("\n"))
	return fmt.Errorf("the input is no valid JSON, at line %d or after it: correct it there (a comma, a quote or a brace)", line)
}

// looksLikeYAML reports whether the text is a resource of Kubernetes.
func looksLikeYAML(text []byte) bool {
	return bytes.HasPrefix(text, []byte("apiVersion:")) || bytes.Contains(text, []byte("\napiVersion:")) || bytes.HasPrefix(text, []byte("---"))
}

// strimziFields are the fields of a KafkaConnector's spec, of Strimzi 0.50.
var strimziFields = []string{"class", "tasksMax", "config", "autoRestart", "pause", "state", "version", "listOffsets", "alterOffsets"}

// readStrimzi reads a KafkaConnector of Strimzi.
func readStrimzi(text []byte) (*Connector, error) {
	var resource struct {
		Kind     string `yaml:"kind"`
		Metadata struct {
			Name string `yaml:"name"`
		} `yaml:"metadata"`
		Spec struct {
			Class    string        `yaml:"class"`
			TasksMax any           `yaml:"tasksMax"`
			Config   yaml.MapSlice `yaml:"config"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(text, &resource); err != nil {
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil {
			return nil, fmt.Errorf("the input is no valid YAML, at line %d: correct it there", at.GetToken().Position.Line)
		}
		return nil, errors.New("the input is no valid YAML: correct it")
	}
	if resource.Kind != "KafkaConnector" {
		return nil, errors.New("the input is a resource of Kubernetes, but no KafkaConnector of Strimzi: name the file with kind: KafkaConnector")
	}
	c := &Connector{Name: resource.Metadata.Name}
	var fields struct {
		Spec yaml.MapSlice `yaml:"spec"`
	}
	_ = yaml.Unmarshal(text, &fields) // it was read before
	for _, f := range fields.Spec {
		name := fmt.Sprint(f.Key)
		if meant := nearest(name, strimziFields); meant != "" && meant != name {
			c.unknown = append(c.unknown, fmt.Errorf("spec.%s: there is no such field: did you mean spec.%s?", printable(name), meant))
		}
	}
	var errs []error
	if resource.Spec.Class != "" {
		c.options.set("connector.class", resource.Spec.Class)
	}
	if resource.Spec.TasksMax != nil {
		c.options.set("tasks.max", fmt.Sprint(resource.Spec.TasksMax))
	}
	for _, item := range resource.Spec.Config {
		name := fmt.Sprint(item.Key)
		switch item.Value.(type) {
		case nil:
		case string, bool, int, int64, uint64, float64:
			c.options.set(name, fmt.Sprint(item.Value))
		default:
			errs = append(errs, fmt.Errorf("%s: the value is no text, number or boolean, and Connect takes no other: write the value in quotes", name))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return c, nil
}

// ReadConnect reads the configuration of a connector from a running Kafka Connect. base is its URL, with user and
// password if it asks for them. If name is empty, the only connector with an outbox router is read; if there are several,
// the error lists them.
func ReadConnect(ctx context.Context, client *http.Client, base, name string) (*Connector, error) {
	connect, err := newConnect(client, base)
	if err != nil {
		return nil, err
	}
	if name != "" {
		text, err := connect.get(ctx, "connectors", name)
		if missing(err) {
			return nil, fmt.Errorf("kafka connect at %s has no connector %q: leave --connector out to see which it has", connect.host(), name)
		}
		if err != nil {
			return nil, err
		}
		c, err := ReadConnector(text)
		if err == nil {
			c.options.sort()
			c.Version = version(ctx, connect)
		}
		return c, err
	}
	text, err := connect.get(ctx, "connectors?expand=info")
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var found []*Connector
	var others []string
	list, err := readObject(d, levels)
	if err != nil || len(bytes.TrimSpace(text)) == 0 || bytes.TrimSpace(text)[0] != '{' {
		return nil, fmt.Errorf("%s answers something else than a list of connectors: name the URL of Connect's REST API, or save the JSON of the connector in a file", connect.host())
	}
	for _, m := range list {
		info, _ := m.value.object.get("info")
		config, _ := info.object.get("config")
		c := &Connector{Name: m.name}
		for _, o := range config.object {
			if !o.value.null {
				c.options.set(o.name, o.value.text)
			}
		}
		if isPostgres(c.Option("connector.class")) && len(routers(c.options)) > 0 {
			found = append(found, c)
		} else {
			others = append(others, m.name)
		}
	}
	switch {
	case len(found) == 1:
		found[0].options.sort() // Connect has them in the order of a hash map
		found[0].Version = version(ctx, connect)
		return found[0], nil
	case len(found) == 0 && len(others) == 0:
		return nil, fmt.Errorf("kafka connect at %s has no connector: name the Connect that runs yours", connect.host())
	case len(found) == 0:
		return nil, fmt.Errorf("kafka connect at %s has no PostgreSQL connector with the outbox router, only %s: name the Connect that runs yours", connect.host(), strings.Join(others, ", "))
	}
	names := make([]string, len(found))
	for i := range found {
		names[i] = found[i].Name
	}
	slices.Sort(names)
	return nil, fmt.Errorf("kafka connect at %s has several outbox connectors: name one with --connector: %s", connect.host(), strings.Join(names, ", "))
}

// version returns the version of Debezium's PostgreSQL connector that Connect has; empty if it does not tell.
func version(ctx context.Context, connect *connect) string {
	text, err := connect.get(ctx, "connector-plugins")
	var plugins []struct{ Class, Version string }
	if err != nil || json.Unmarshal(text, &plugins) != nil {
		return ""
	}
	found := ""
	for _, p := range plugins {
		switch {
		case !isPostgres(p.Class):
		case found != "" && found != p.Version: // several: Connect does not tell which one runs
			return ""
		default:
			found = p.Version
		}
	}
	return found
}
