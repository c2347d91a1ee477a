package debezium

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Worker is the configuration of a worker of Connect, which a connector's records depend on.
type Worker struct{ options pairs }

// ReadWorker reads the .properties file of a worker.
func ReadWorker(text []byte) (*Worker, error) {
	options, err := readProperties(string(text))
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"bootstrap.servers", "key.converter", "value.converter"} {
		if _, ok := options.get(name); ok {
			return &Worker{options}, nil
		}
	}
	return nil, errors.New("it has neither bootstrap.servers nor key.converter: name the file that Connect is started with, worker.properties for example")
}

// value returns the value of an option; empty without a worker.
func (w *Worker) value(name string) string {
	if w == nil {
		return ""
	}
	v, _ := w.options.get(name)
	return strings.TrimSpace(v)
}

// producer returns the value of an option of the producers that the worker starts for connectors.
func (w *Worker) producer(option string) string { return w.value("producer." + option) }

// The three parts of a record that a converter writes.
var recordParts = []string{"key", "value", "header"}

const (
	stringConverter = "org.apache.kafka.connect.storage.StringConverter"
	jsonConverter   = "org.apache.kafka.connect.json.JsonConverter"
	simpleConverter = "org.apache.kafka.connect.storage.SimpleHeaderConverter"
	binaryConverter = "io.debezium.converters.BinaryDataConverter"
)

// converterOf returns the full name of a converter that walpost writes as; empty for another. Connect takes a class's
// simple name, too, also without Converter.
func converterOf(class string) string {
	class = strings.TrimSpace(class)
	if class == "io.debezium.converters.ByteBufferConverter" { // its name in Debezium 1
		return binaryConverter
	}
	for _, full := range Converters() {
		short := simple(full)
		if class == full || class == short || class == strings.TrimSuffix(short, "Converter") {
			return full
		}
	}
	return ""
}

// notThere returns what a consumer sees without the converter.
func notThere(part, class string) string {
	written := "the text of the column (StringConverter)"
	if part == "header" {
		written = "the text of the column (SimpleHeaderConverter)"
	}
	form := "what " + simpleName(class) + " writes"
	more := "move the consumers to that form first, or leave the connector as it is"
	switch name := simple(class); {
	case strings.Contains(name, "Avro"):
		form = "Avro with the id of a schema in a registry"
	case strings.Contains(name, "Protobuf"):
		form = "Protobuf with the id of a schema in a registry"
	case strings.Contains(name, "JsonSchema"), name == "ExtJsonConverter":
		form = "JSON with the id of a schema in a registry"
	case strings.Contains(name, "CloudEvents"):
		form = "a CloudEvent"
		more = "walpost writes CloudEvents in binary mode (kafka.headers: cloudevents) without the section debezium"
	}
	return fmt.Sprintf("a %s is %s, not %s: %s", part, written, form, more)
}

// nearConverter returns the class that was meant by a misspelt one; empty if none is near.
func nearConverter(class string) string {
	var names []string
	for _, full := range Converters() {
		names = append(names, full, simple(full))
	}
	return converterOf(nearest(strings.TrimSpace(class), names))
}

// isConverter reports whether the option belongs to a converter of the connector.
func isConverter(name string) bool {
	return slices.ContainsFunc(recordParts, func(p string) bool {
		return name == p+".converter" || strings.HasPrefix(name, p+".converter.") && !strings.HasSuffix(name, ".plugin.version")
	})
}

// readConverter writes the line of an option of a converter of the connector.
func (i *importing) readConverter(e entry) {
	part, option, _ := strings.Cut(e.name, ".converter")
	option = strings.TrimPrefix(option, ".")
	class := i.value(part+".converter", "")
	switch {
	case option == "":
		i.converterClass(e, part, class)
	case class == "":
		i.line(e, NoEffect, "Connect ignores it, too, because the connector has no %s.converter: the worker's counts with its own options", part)
	default:
		i.converterOption(e, part, class, option)
	}
}

// converterClass takes a converter over, or notes what a consumer sees without it.
func (i *importing) converterClass(e entry, part, class string) {
	if class == "" {
		i.wrong("%s: it is empty: name the converter, or take the option out", e.label)
		return
	}
	if full := converterOf(class); full != "" {
		i.set(part+".converter", full)
		i.line(e, TakenOver, "%s.converter", part)
		return
	}
	if meant := nearConverter(class); meant != "" {
		i.set(part+".converter", meant)
		i.wrong("%s: there is no such converter: did you mean %s?", printable(e.label), meant)
		return
	}
	i.set(part+".converter", map[string]string{"key": stringConverter, "value": stringConverter, "header": simpleConverter}[part])
	i.line(e, Unsupported, "%s", notThere(part, class))
}

// converterOption takes an option of a converter over.
func (i *importing) converterOption(e entry, part, class, option string) {
	value := strings.TrimSpace(e.value)
	full := converterOf(class)
	taken := func(as string) {
		i.set(part+".converter."+option, as)
		i.line(e, TakenOver, "%s.converter.%s", part, option)
	}
	switch full {
	case "":
		i.line(e, NoEffect, "it belongs to %s.converter, whose line says what that means", part)
		return
	case jsonConverter:
		switch option {
		case "schemas.enable":
			taken(value)
			return
		case "schemas.cache.size", "converter.type":
			i.line(e, NoEffect, "it changes no record")
			return
		case "decimal.format":
			taken(value)
			return
		case "replace.null.with.default":
			i.line(e, NoEffect, "the router has replaced NULL by the column's default before, there and here")
			return
		case "schema.content":
			if value == "" {
				i.line(e, NoEffect, "it is empty")
				return
			}
			i.line(e, Unsupported, "the value has the schema that the column gives it, not this one")
			return
		}
	case stringConverter:
		if option == "encoding" || option == "converter.encoding" {
			if strings.EqualFold(value, "UTF-8") || strings.EqualFold(value, "UTF8") {
				i.line(e, NoEffect, "StringConverter's default")
				return
			}
			i.line(e, Unsupported, "the text is in UTF-8")
			return
		}
	case binaryConverter, "io.debezium.converters.ByteArrayConverter":
		if option == "delegate.converter.type" || strings.HasPrefix(option, "delegate.converter.type.") {
			if full := converterOf(value); option == "delegate.converter.type" && full != "" {
				value = full
			}
			taken(value)
			return
		}
	}
	if meant := nearest(option, converterNames); meant != "" && meant != option {
		i.wrong("%s: there is no such option: did you mean %s?", printable(e.label), strings.TrimSuffix(e.label, option)+meant)
		return
	}
	i.line(e, NoEffect, "%s does not read it", simpleName(class))
}

// converterNames are the options of the converters that walpost writes as.
var converterNames = append([]string{"schema.content", "converter.encoding", "converter.type"}, converterOptions...)

// formats are Debezium Server's names of converters.
var formats = map[string]string{
	"json": jsonConverter, "jsonbytearray": jsonConverter, "simplestring": stringConverter, "binary": binaryConverter,
	"avro": "AvroConverter", "protobuf": "ProtobufConverter", "cloudevents": "CloudEventsConverter",
}

// formatClass returns the class of the converter that Debezium Server uses for a part of the record, json by default.
func (i *importing) formatClass(part string) string {
	format := strings.ToLower(i.value("debezium.format."+part, "json"))
	if format == "clientprovided" {
		return i.value("debezium.format."+part+".class", i.value("debezium.format.class", ""))
	}
	return formats[format]
}

// readFormat writes the line of an option of Debezium Server's formats; rest is its name without debezium.format.
func (i *importing) readFormat(e entry, rest string) {
	part, option, _ := strings.Cut(rest, ".")
	if !slices.Contains(recordParts, part) {
		i.readCommonFormat(e, rest)
		return
	}
	class := i.formatClass(part)
	switch {
	case option == "" && class == "":
		said := "write json, jsonbytearray, simplestring or binary"
		if meant := nearest(strings.TrimSpace(e.value), slices.Sorted(maps.Keys(formats))); meant != "" {
			said = "did you mean " + meant + "?"
		}
		i.wrong("%s: Debezium Server has no such format for Kafka: %s", e.label, said)
	case option == "":
		i.converterClass(e, part, class)
	case option == "class" && part == "header" && converterOf(class) != "" && converterOf(class) != jsonConverter && i.placesHeaders():
		i.line(e, Unsupported, "a header whose column is NULL is there without a value; Debezium Server leaves it out")
	case option == "class":
		i.line(e, NoEffect, "the class of %s", strings.TrimSuffix(e.label, ".class"))
	default:
		i.converterOption(e, part, class, option)
	}
}

// placesHeaders reports whether the router puts columns into headers.
func (i *importing) placesHeaders() bool {
	return slices.ContainsFunc(i.placements(), func(p placed) bool { return p.where == "header" })
}

// readCommonFormat takes an option over that all three formats share.
func (i *importing) readCommonFormat(e entry, option string) {
	if option != "schemas.enable" {
		if meant := nearest(option, []string{"schemas.enable", "key", "value", "header"}); meant != "" {
			i.wrong("%s: there is no such option: did you mean debezium.format.%s?", printable(e.label), meant)
			return
		}
		i.line(e, NoEffect, "it is for registries and other formats than JSON")
		return
	}
	for _, part := range recordParts {
		if _, own := i.options.get("debezium.format." + part + ".schemas.enable"); !own && i.formatClass(part) == jsonConverter {
			i.set(part+".converter.schemas.enable", strings.TrimSpace(e.value))
		}
	}
	i.line(e, TakenOver, "key.converter.schemas.enable, value.converter.schemas.enable and header.converter.schemas.enable, where none has its own")
}

// convert chooses the converters that the input does not name: the worker's, or the defaults.
func (i *importing) convert() {
	for _, part := range recordParts {
		name := part + ".converter"
		if _, ok := i.debezium.get(name); ok {
			continue
		}
		if i.connector.Server {
			if _, given := i.options.get("debezium.format." + part); !given {
				i.set(name, jsonConverter) // Debezium Server's default, also for headers
			}
			continue
		}
		if _, own := i.options.get(name); own {
			continue // its line is an error
		}
		class := i.worker.value(name)
		switch {
		case class != "":
			i.converterClass(entry{name + " (worker)", name, class}, part, class)
			for _, s := range i.worker.options {
				e := entry{s.name + " (worker)", s.name, s.value}
				if option, ok := strings.CutPrefix(s.name, name+"."); ok && i.takes(e) {
					i.converterOption(e, part, class, option)
				}
			}
		case part == "header":
			i.set(name, simpleConverter)
		case i.worker != nil:
			i.wrong("%s: missing, in the connector and in the worker's file: write the converter that Connect uses in a copy of the input", name)
		default:
			i.wrong("%s: missing: Connect takes it from the worker: name the worker's file with --worker worker.properties", name)
		}
	}
}

// readWorker writes the lines of the worker's other options that reach a record or a key of walpost.
func (i *importing) readWorker() {
	if i.worker == nil {
		return
	}
	for _, s := range i.worker.options {
		e := entry{s.name + " (worker)", s.name, s.value}
		option, ofProducer := strings.CutPrefix(s.name, "producer.")
		_, replaced := i.options.get(overrides + option)
		switch {
		case s.name == "exactly.once.source.support" && !i.takes(e):
		case ofProducer && !replaced && slices.Contains(producerReaders, option) && !i.takes(entry{e.label, overrides + option, e.value}):
		case s.name == "bootstrap.servers" && len(i.asked.Brokers) == 0:
			i.line(e, Equivalent, "kafka.brokers")
		case s.name == "exactly.once.source.support" && strings.EqualFold(strings.TrimSpace(s.value), "enabled"):
			i.delivery = "exactly_once"
			i.line(e, Equivalent, "delivery: exactly_once")
		case ofProducer && !replaced && slices.Contains(producerReaders, option):
			i.readProducer(e, option)
		}
	}
}
