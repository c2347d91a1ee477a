package debezium

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// form is what a converter writes.
type form byte

const (
	asText   form = iota // StringConverter
	asSimple             // SimpleHeaderConverter
	asJSON
	asBytes  // ByteArrayConverter
	asBinary // BinaryDataConverter: bytes as they are, everything else by its delegate
	asNumber
	asBoolean
)

// classes are the converters that this package has, by class.
var classes = map[string]converter{
	"org.apache.kafka.connect.storage.StringConverter":       {form: asText},
	"org.apache.kafka.connect.storage.SimpleHeaderConverter": {form: asSimple},
	"org.apache.kafka.connect.json.JsonConverter":            {form: asJSON},
	"org.apache.kafka.connect.converters.ByteArrayConverter": {form: asBytes},
	"org.apache.kafka.connect.converters.ShortConverter":     {form: asNumber, kind: int16s},
	"org.apache.kafka.connect.converters.IntegerConverter":   {form: asNumber, kind: int32s},
	"org.apache.kafka.connect.converters.LongConverter":      {form: asNumber, kind: int64s},
	"org.apache.kafka.connect.converters.FloatConverter":     {form: asNumber, kind: float32s},
	"org.apache.kafka.connect.converters.DoubleConverter":    {form: asNumber, kind: float64s},
	"org.apache.kafka.connect.converters.BooleanConverter":   {form: asBoolean},
	"io.debezium.converters.BinaryDataConverter":             {form: asBinary},
	"io.debezium.converters.ByteArrayConverter":              {form: asBinary},
}

// converterOptions are the options of converters.
var converterOptions = []string{"schemas.enable", "schemas.cache.size", "decimal.format", "replace.null.with.default", "encoding", "delegate.converter.type"}

// Converters returns the classes of converters that Parse takes, sorted.
func Converters() []string {
	names := make([]string, 0, len(classes))
	for name := range classes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// converter writes values as a converter of Kafka Connect does.
type converter struct {
	form     form
	kind     kind // of asNumber
	schemas  bool // JsonConverter: with the schema
	numeric  bool // JsonConverter: decimals as numbers
	delegate *converter
	name     string // of its option
	class    string
}

// describes reports whether the converter writes schemas.
func (c *converter) describes() bool {
	return c.form == asJSON && c.schemas || c.delegate != nil && c.delegate.describes()
}

// newConverter reads the converter of an option.
func newConverter(name string, given map[string]string) (*converter, error) {
	class, set := given[name]
	if !set {
		if class = "org.apache.kafka.connect.storage.StringConverter"; name == "header.converter" {
			class = "org.apache.kafka.connect.storage.SimpleHeaderConverter"
		}
	}
	return newClass(name, strings.TrimSpace(class), given)
}

func newClass(name, class string, given map[string]string) (*converter, error) {
	c, ok := classes[class]
	if !ok {
		lower := strings.ToLower(class)
		short := class[strings.LastIndexByte(class, '.')+1:]
		for _, known := range Converters() {
			if class == known[strings.LastIndexByte(known, '.')+1:] {
				return nil, fmt.Errorf("%s: %s has no package: write %s", name, class, known)
			}
		}
		for _, registry := range []string{"avro", "protobuf", "jsonschema"} {
			if strings.Contains(lower, registry) {
				return nil, fmt.Errorf("%s: %s writes ids of a schema registry, which walpost does not: use StringConverter, JsonConverter or ByteArrayConverter, and consumers that read their records", name, short)
			}
		}
		return nil, fmt.Errorf("%s: walpost does not have the converter %s: write one of %s", name, class, strings.Join(Converters(), ", "))
	}
	c.name, c.class, c.schemas = name, class[strings.LastIndexByte(class, '.')+1:], true
	var errs []error
	is := func(option string, normal bool) bool {
		word, set := given[name+"."+option]
		switch lower := strings.ToLower(strings.TrimSpace(word)); {
		case !set:
			return normal
		case lower == "true" || lower == "false":
			return lower == "true"
		}
		errs = append(errs, fmt.Errorf("%s.%s: %q is neither true nor false", name, option, word))
		return normal
	}
	if c.form == asSimple && name != "header.converter" {
		errs = append(errs, fmt.Errorf("%s: SimpleHeaderConverter is for header.converter only: write org.apache.kafka.connect.storage.StringConverter", name))
	}
	if c.form == asJSON {
		c.schemas = is("schemas.enable", true)
		switch word := given[name+".decimal.format"]; strings.ToUpper(word) {
		case "", "BASE64":
		case "NUMERIC":
			c.numeric = true
		default:
			errs = append(errs, fmt.Errorf("%s.decimal.format: %q is not supported: write BASE64 or NUMERIC", name, word))
		}
		is("replace.null.with.default", true) // no difference: the router replaces NULL by the default before
	}
	if word := given[name+".encoding"]; c.form == asText && word != "" && !strings.EqualFold(word, "UTF-8") && !strings.EqualFold(word, "UTF8") {
		errs = append(errs, fmt.Errorf("%s.encoding: %q is not supported: write UTF-8", name, word))
	}
	if class, set := given[name+".delegate.converter.type"]; set && c.form == asBinary {
		var err error
		c.delegate, err = newClass(name+".delegate.converter.type", strings.TrimSpace(class), given)
		if errs = append(errs, err); c.delegate != nil && c.delegate.form == asSimple {
			errs = append(errs, fmt.Errorf("%s.delegate.converter.type: SimpleHeaderConverter cannot be a delegate: write another", name))
		}
	}
	return &c, errors.Join(errs...)
}

// errAddress is the reason why Java's text of bytes cannot be written.
var errAddress = errors.New("is written by Debezium as the address of an object, which differs from record to record: use JsonConverter, or cast the column to text in another one")

// fits returns an error if the converter fails for every value of this schema.
func (c *converter) fits(s *schema) error {
	wrong := func(takes string) error {
		return fmt.Errorf("is a %s for Debezium, and %s (%s) takes %s only: Debezium's task fails; choose another column or converter", kindNames[s.kind], c.class, c.name, takes)
	}
	switch c.form {
	case asText:
		if s.name == variableDecimal || s.name == geometricPoint || s.name == "io.debezium.data.Bits" || s.kind == array && c.fits(s.items) != nil {
			return errAddress
		}
	case asBytes:
		if s.kind != binary || s.name == connectDecimal {
			return wrong("bytes")
		}
	case asBinary:
		if s.kind == binary && s.name != connectDecimal {
			return nil
		}
		if c.delegate == nil {
			return fmt.Errorf("is a %s for Debezium, and BinaryDataConverter (%s) takes bytes only without %s.delegate.converter.type: Debezium's task fails; set the delegate", kindNames[s.kind], c.name, c.name)
		}
		return c.delegate.fits(s)
	case asNumber:
		if s.kind != c.kind || s.name == connectDate || s.name == connectTime || s.name == connectTimestamp {
			return wrong(kindNames[c.kind])
		}
	case asBoolean:
		if s.kind != boolean {
			return wrong("boolean")
		}
	}
	return nil
}

// errShape is the error of a value that its schema does not describe.
var errShape = errors.New("it is JSON that Debezium describes with a schema and cannot convert (an array at the root, or a number beyond 64 bits): Debezium's task fails")

// errRequired is the error of a null where the column is NOT NULL.
var errRequired = errors.New("it has a value that Debezium cannot convert and takes for null, and the column is NOT NULL: Debezium's task fails; NaN and infinity need decimal.handling.mode string or double")

// append appends the value; isNull: the record has none. Debezium can hold a text with the schema of something else
// (misfit), or with none (s is nil).
func (c *converter) append(b []byte, v value, s *schema, misfit bool) (_ []byte, isNull bool, err error) {
	switch c.form {
	case asText, asSimple:
		if v.class == null {
			return b, true, nil
		}
		if c.form == asSimple {
			return appendHeader(b, v, s, false), false, nil
		}
		return appendText(b, v, s), false, nil
	case asJSON:
		if misfit {
			return b, false, errShape
		}
		if v.class == null && s != nil && !s.optional {
			return b, false, errRequired
		}
		if c.schemas {
			b = append(append(append(b, `{"schema":`...), s.describe()...), `,"payload":`...)
		}
		if b = appendJSON(b, v, s, c.numeric); c.schemas {
			b = append(b, '}')
		}
		return b, false, nil
	case asBinary:
		if (s == nil || s.kind == binary) && (v.class == byteBuffer || v.class == byteArray) {
			return append(b, v.b...), false, nil
		}
		if v.class == null && (s == nil || s.kind == binary) {
			return b, true, nil
		}
		if c.delegate == nil {
			return b, false, fmt.Errorf("BinaryDataConverter takes bytes only without %s.delegate.converter.type: Debezium's task fails", c.name)
		}
		return c.delegate.append(b, v, s, misfit)
	}
	switch {
	case misfit || s == nil:
		return b, false, errShape
	case v.class == null:
		return b, true, nil
	case c.form == asBytes:
		return append(b, v.b...), false, nil
	case c.form == asBoolean:
		return append(b, byte(v.n)), false, nil
	}
	switch c.kind {
	case int16s:
		return bigEndian(b, uint64(v.n), 2), false, nil
	case int32s:
		return bigEndian(b, uint64(v.n), 4), false, nil
	case int64s:
		return bigEndian(b, uint64(v.n), 8), false, nil
	case float32s:
		return bigEndian(b, uint64(math.Float32bits(float32(v.f))), 4), false, nil
	default:
		return bigEndian(b, math.Float64bits(v.f), 8), false, nil
	}
}

// bigEndian appends the last n bytes of a number, the highest first.
func bigEndian(b []byte, bits uint64, n int) []byte {
	for n--; n >= 0; n-- {
		b = append(b, byte(bits>>(8*n)))
	}
	return b
}
