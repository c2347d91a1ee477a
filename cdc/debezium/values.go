package debezium

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/walpost/walpost/cdc"
)

// Types of PostgreSQL, by OID.
const (
	oidBool, oidBytea, oidChar, oidName, oidInt8, oidInt2, oidInt4, oidText, oidOID = 16, 17, 18, 19, 20, 21, 23, 25, 26
	oidJSON, oidXML, oidFloat4, oidFloat8, oidMoney, oidBPChar, oidVarchar          = 114, 142, 700, 701, 790, 1042, 1043
	oidDate, oidTime, oidTimestamp, oidTimestamptz, oidInterval, oidTimetz          = 1082, 1083, 1114, 1184, 1186, 1266
	oidBit, oidVarbit, oidNumeric, oidUUID, oidTsvector, oidJSONB, oidPoint         = 1560, 1562, 1700, 2950, 3614, 3802, 600
	oidCIDR, oidInet, oidMacaddr, oidMacaddr8                                       = 650, 869, 829, 774
	oidInt4range, oidNumrange, oidTsrange, oidTstzrange, oidDaterange, oidInt8range = 3904, 3906, 3908, 3910, 3912, 3926
)

// elements are the types of the elements of arrays.
var elements = map[uint32]uint32{
	1000: oidBool, 1005: oidInt2, 1007: oidInt4, 1016: oidInt8, 1009: oidText, 1015: oidVarchar, 1014: oidBPChar, 1002: oidChar,
	2951: oidUUID, 1021: oidFloat4, 1022: oidFloat8, 1028: oidOID, 199: oidJSON, 3807: oidJSONB, 1182: oidDate, 1183: oidTime,
	1115: oidTimestamp, 1185: oidTimestamptz, 1231: oidNumeric, 1001: oidBytea, 1041: oidInet, 651: oidCIDR, 1040: oidMacaddr,
}

// Names of schemas.
const (
	connectDate      = "org.apache.kafka.connect.data.Date"
	connectTime      = "org.apache.kafka.connect.data.Time"
	connectTimestamp = "org.apache.kafka.connect.data.Timestamp"
	connectDecimal   = "org.apache.kafka.connect.data.Decimal"
	milliTimestamp   = "io.debezium.time.Timestamp"
	microTimestamp   = "io.debezium.time.MicroTimestamp"
	nanoTimestamp    = "io.debezium.time.NanoTimestamp"
	geometricPoint   = "io.debezium.data.geometry.Point"
	variableDecimal  = "io.debezium.data.VariableScaleDecimal"
)

// column reads the values of one column of the table as Debezium's connector does.
type column struct {
	*schema
	read   func(text []byte) (value, error)
	raw    bool // the value is PostgreSQL's text, unchanged
	strict bool // a value that Debezium cannot convert is an error, and not NULL
}

// value returns the value of the row, or of the column's default for NULL. A value that Debezium cannot convert counts as
// NULL, as there.
func (c *column) value(text []byte) (value, error) {
	if text != nil && c.raw {
		return value{class: chars, b: text}, nil
	}
	if text != nil {
		if v, err := c.read(text); !errors.Is(err, errNull) || c.strict {
			return v, err
		}
	}
	if c.fallback != nil {
		return *c.fallback, nil
	}
	return value{}, nil
}

// unsupportedError says why a column cannot be used.
type unsupportedError struct{ column, reason string }

func (u *unsupportedError) Error() string { return fmt.Sprintf("column %s %s", u.column, u.reason) }

var (
	errValue = errors.New("its text is none that PostgreSQL prints for the type")
	errNull  = errors.New("it is NaN or an infinity, which decimal.handling.mode precise cannot hold: set it to string or double")
)

// newColumn returns the reader of a column; nil if Debezium leaves columns of this type out of its events.
func newColumn(c *cdc.Column, o *Options) (*column, error) {
	refuse := func(format string, args ...any) error {
		return &unsupportedError{c.Name, "of type " + c.TypeName + " " + fmt.Sprintf(format, args...)}
	}
	s := &schema{kind: text, optional: !c.NotNull}
	named := func(k kind, name string) { s.kind, s.name, s.version, s.numbered = k, name, 1, true }
	col := &column{schema: s, raw: true, strict: o.strict}
	read := func(f func([]byte) (value, error)) { col.raw, col.read = false, f }
	whole := func(k kind) {
		s.kind = k
		read(readInteger)
	}
	if element, ok := elements[c.Type]; ok {
		inner := *c
		inner.Type, inner.TypeName, inner.NotNull, inner.Default = element, strings.TrimSuffix(c.TypeName, "[]"), false, ""
		of, err := newColumn(&inner, o)
		if err != nil {
			return nil, err
		}
		s.kind, s.items = array, of.schema
		read(func(t []byte) (value, error) { return readArray(t, of) })
		return col, nil
	}
	switch c.Type {
	case oidText, oidVarchar, oidBPChar, oidChar, oidInet, oidCIDR, oidMacaddr, oidMacaddr8,
		oidInt4range, oidInt8range, oidNumrange, oidTsrange, oidTstzrange, oidDaterange:
	case oidUUID:
		named(text, "io.debezium.data.Uuid")
	case oidJSON, oidJSONB:
		named(text, "io.debezium.data.Json")
	case oidXML:
		named(text, "io.debezium.data.Xml")
	case oidTsvector:
		named(text, "io.debezium.data.Tsvector")
	case oidInt2:
		whole(int16s)
	case oidInt4:
		whole(int32s)
	case oidInt8, oidOID:
		whole(int64s)
	case oidBool:
		s.kind = boolean
		read(readBool)
	case oidFloat4:
		s.kind = float32s
		read(func(t []byte) (value, error) { return readFloat(t, 32) })
	case oidFloat8:
		s.kind = float64s
		read(func(t []byte) (value, error) { return readFloat(t, 64) })
	case oidNumeric:
		if c.Modifier >= 0 && scaleOf(c.Modifier) < 0 {
			return nil, refuse("has a negative scale, which Debezium misreads")
		}
		read(numeric(s, c.Modifier, o.decimals))
	case oidBytea:
		switch o.binaries {
		case "bytes":
			s.kind = binary
			read(func(t []byte) (value, error) { return readBytea(t, byteBuffer, nil) })
		case "base64":
			read(func(t []byte) (value, error) { return readBytea(t, chars, base64.StdEncoding.AppendEncode) })
		case "base64-url-safe":
			read(func(t []byte) (value, error) { return readBytea(t, chars, base64.URLEncoding.AppendEncode) })
		default:
			read(func(t []byte) (value, error) { return readBytea(t, chars, hex.AppendEncode) })
		}
	case oidBit, oidVarbit:
		length := c.Modifier
		if length < 0 {
			length = math.MaxInt32
		}
		if length == 1 {
			s.kind = boolean
			read(func(t []byte) (value, error) { return value{class: truth, n: one(string(t) == "1")}, nil })
			break
		}
		named(binary, "io.debezium.data.Bits")
		s.params = [][2]string{{"length", strconv.Itoa(int(length))}}
		read(readBits)
	case oidDate:
		temporalDate(col, named, read, o.times)
	case oidTime:
		temporalTime(col, named, read, o.times, precision(c.Modifier))
	case oidTimestamp:
		temporalTimestamp(col, named, read, o.times, precision(c.Modifier))
	case oidTimestamptz:
		named(text, "io.debezium.time.ZonedTimestamp")
		digits := precision(c.Modifier)
		read(func(t []byte) (value, error) { return readZoned(t, digits) })
	case oidTimetz:
		named(text, "io.debezium.time.ZonedTime")
		read(readTimetz)
	case oidInterval:
		if o.intervals == "string" {
			named(text, "io.debezium.time.Interval")
			read(readIntervalText)
		} else {
			named(int64s, "io.debezium.time.MicroDuration")
			read(readIntervalMicros)
		}
	case oidName:
		// Debezium knows the type and not its values: they are null, or empty where null is not allowed.
		read(func([]byte) (value, error) {
			if c.NotNull {
				return value{class: chars, b: []byte{}}, nil
			}
			return value{}, nil
		})
	case oidMoney:
		read(money(s, o.decimals))
	case oidPoint:
		*s = schema{
			kind: structure, optional: s.optional, name: geometricPoint, version: 1, numbered: true, doc: "Geometry (POINT)",
			fields: []field{{"x", &schema{kind: float64s}}, {"y", &schema{kind: float64s}}, {"wkb", optionalOf(binary)}, {"srid", optionalOf(int32s)}},
		}
		read(func(t []byte) (value, error) { return readPoint(t, s) })
	default:
		switch name := bareType(c.TypeName); {
		case c.Labels != nil:
			named(text, "io.debezium.data.Enum")
			s.params = [][2]string{{"allowed", strings.Join(c.Labels, ",")}}
		case name == "citext":
		case name == "ltree":
			named(text, "io.debezium.data.Ltree")
		case name == "hstore":
			if o.hstores != "json" {
				return nil, refuse("is supported with hstore.handling.mode json only")
			}
			named(text, "io.debezium.data.Json")
			read(readHstore)
		case strings.HasSuffix(name, "[]"), name == "geometry", name == "geography", name == "vector", name == "halfvec", name == "sparsevec", name == "isbn":
			return nil, refuse("is not supported here: cast it to text in another column")
		default:
			return nil, nil
		}
	}
	return col, setDefault(col, c, o)
}

// bareType returns the name of a type without its schema, quotes and modifier.
func bareType(name string) string {
	if at := strings.LastIndexByte(name, '.'); at >= 0 {
		name = name[at+1:]
	}
	if at := strings.IndexByte(name, '('); at > 0 {
		name = name[:at]
	}
	return strings.Trim(name, `"`)
}

func one(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// precision returns the number of digits behind a second's point. PostgreSQL's default is six.
func precision(modifier int32) int {
	if modifier < 0 {
		return 6
	}
	return int(modifier)
}

// scaleOf returns the scale of a numeric's modifier.
func scaleOf(modifier int32) int {
	scale := int(modifier-4) & 0x7FF
	return scale ^ 1024 - 1024
}

func readInteger(t []byte) (value, error) {
	var n int64
	i, negative := 0, false
	if len(t) > 0 && t[0] == '-' {
		i, negative = 1, true
	}
	if i == len(t) {
		return value{}, errValue
	}
	for ; i < len(t); i++ {
		if t[i] < '0' || t[i] > '9' {
			return value{}, errValue
		}
		n = n*10 - int64(t[i]-'0') // down, because the smallest number has no positive counterpart
	}
	if !negative {
		n = -n
	}
	return value{class: integer, n: n}, nil
}

func readBool(t []byte) (value, error) {
	return value{class: truth, n: one(len(t) == 1 && t[0] == 't')}, nil
}

func readFloat(t []byte, bits int) (value, error) {
	f, err := strconv.ParseFloat(string(t), bits)
	if err != nil {
		return value{}, errValue
	}
	return value{class: float, f: f}, nil
}

func readBytea(t []byte, as class, encode func(dst, src []byte) []byte) (value, error) {
	if len(t) < 2 || t[0] != '\\' || t[1] != 'x' {
		return value{}, errValue
	}
	b, err := hex.AppendDecode(make([]byte, 0, len(t)/2), t[2:])
	if err != nil {
		return value{}, errValue
	}
	if encode != nil {
		b = encode(nil, b)
	}
	return value{class: as, b: b}, nil
}

// readBits returns the bits as bytes, the last bit first, without zero bytes at the end.
func readBits(t []byte) (value, error) {
	b := make([]byte, (len(t)+7)/8)
	for i, c := range t {
		if c == '1' {
			at := len(t) - 1 - i
			b[at/8] |= 1 << (at % 8)
		}
	}
	return value{class: byteArray, b: bytes.TrimRight(b, "\x00")}, nil
}

// numeric sets the schema of a numeric column, and returns what reads it.
func numeric(s *schema, modifier int32, mode string) func([]byte) (value, error) {
	special := func(t []byte) (float64, string) {
		switch string(t) {
		case "NaN":
			return math.NaN(), "NAN"
		case "Infinity":
			return math.Inf(1), "POSITIVE_INFINITY"
		case "-Infinity":
			return math.Inf(-1), "NEGATIVE_INFINITY"
		}
		return 0, ""
	}
	scaled := func(t []byte) (decimal, error) {
		d, err := parseDecimal(t)
		if err != nil {
			return d, errValue
		}
		if modifier >= 0 {
			d, _ = d.rescale(scaleOf(modifier))
		}
		return d, nil
	}
	switch mode {
	case "double":
		s.kind = float64s
		return func(t []byte) (value, error) {
			if f, name := special(t); name != "" {
				return value{class: float, f: f}, nil
			}
			d, err := scaled(t)
			return value{class: float, f: d.doubleOr(err)}, err
		}
	case "string":
		return func(t []byte) (value, error) {
			if _, name := special(t); name != "" {
				return value{class: chars, b: []byte(name)}, nil
			}
			d, err := scaled(t)
			if err != nil {
				return value{}, err
			}
			return value{class: chars, b: appendPlain(nil, d)}, nil
		}
	}
	if modifier < 0 {
		*s = schema{
			kind: structure, optional: s.optional, name: variableDecimal, version: 1, numbered: true, doc: "Variable scaled decimal",
			fields: []field{{"scale", &schema{kind: int32s}}, {"value", &schema{kind: binary}}},
		}
		return func(t []byte) (value, error) {
			if _, name := special(t); name != "" {
				return value{}, errNull
			}
			d, err := scaled(t)
			if err != nil {
				return value{}, err
			}
			d = d.strip()
			return value{class: object, of: s, list: []value{
				{class: integer, n: int64(d.scale)}, {class: byteArray, b: twosComplement(d.unscaled)},
			}}, nil
		}
	}
	s.kind, s.name, s.version, s.numbered = binary, connectDecimal, 1, true
	s.params = [][2]string{
		{"scale", strconv.Itoa(scaleOf(modifier))}, {"connect.decimal.precision", strconv.Itoa(int(modifier-4) >> 16)},
	}
	return func(t []byte) (value, error) {
		if _, name := special(t); name != "" {
			return value{}, errNull
		}
		d, err := scaled(t)
		return value{class: bigDecimal, d: d}, err
	}
}

// money sets the schema of a money column, and returns what reads it. Its text has two digits behind the point and a sign
// of the currency, as lc_monetary says.
func money(s *schema, mode string) func([]byte) (value, error) {
	amount := func(t []byte) (decimal, error) {
		text := string(t)
		negative := strings.HasPrefix(text, "-") || strings.HasPrefix(text, "(")
		text = strings.Trim(text, "-()")
		if text != "" && (text[0] < '0' || text[0] > '9') {
			_, size := utf8.DecodeRuneInString(text)
			text = text[size:]
		}
		d, err := parseDecimal([]byte(strings.ReplaceAll(text, ",", "")))
		if err != nil || d.scale != 2 {
			return d, errors.New("it is money that is not written as $1,234.56, and Debezium's task fails: set lc_monetary of the database to C or en_US")
		}
		if negative {
			d.unscaled.Neg(d.unscaled)
		}
		return d, nil
	}
	switch mode {
	case "double":
		s.kind = float64s
		return func(t []byte) (value, error) {
			d, err := amount(t)
			return value{class: float, f: d.doubleOr(err)}, err
		}
	case "string":
		return func(t []byte) (value, error) {
			d, err := amount(t)
			if err != nil {
				return value{}, err
			}
			return value{class: chars, b: appendPlain(nil, d)}, nil
		}
	}
	s.kind, s.name, s.version, s.numbered, s.params = binary, connectDecimal, 1, true, [][2]string{{"scale", "2"}}
	return func(t []byte) (value, error) {
		d, err := amount(t)
		return value{class: bigDecimal, d: d}, err
	}
}

// readPoint reads (1,2.5), and adds the point in well-known binary.
func readPoint(t []byte, s *schema) (value, error) {
	x, y, ok := strings.Cut(strings.Trim(string(t), "()"), ",")
	fx, err1 := strconv.ParseFloat(x, 64)
	fy, err2 := strconv.ParseFloat(y, 64)
	if !ok || err1 != nil || err2 != nil {
		return value{}, errValue
	}
	wkb := []byte{1, 1, 0, 0, 0}
	for _, f := range []float64{fx, fy} {
		for i, bits := 0, math.Float64bits(f); i < 64; i += 8 {
			wkb = append(wkb, byte(bits>>i))
		}
	}
	return value{class: object, of: s, list: []value{{class: float, f: fx}, {class: float, f: fy}, {class: byteArray, b: wkb}, {}}}, nil
}

func (d decimal) doubleOr(err error) float64 {
	if err != nil {
		return 0
	}
	return d.double()
}

// readArray reads an array of one dimension.
func readArray(t []byte, of *column) (value, error) {
	v := value{class: list, list: []value{}}
	if len(t) < 2 || t[0] != '{' || t[len(t)-1] != '}' {
		return v, errors.New("it is an array whose indexes do not begin at 1, which is not supported here")
	}
	for i := 1; i < len(t)-1; {
		var word []byte
		quoted := false
		switch t[i] {
		case '{':
			return v, errors.New("it is an array of several dimensions, which is not supported here")
		case '"':
			quoted = true
			for i++; i < len(t) && t[i] != '"'; i++ {
				if t[i] == '\\' {
					i++
				}
				word = append(word, t[i])
			}
			i++
			if word == nil {
				word = []byte{}
			}
		default:
			from := i
			for i < len(t)-1 && t[i] != ',' {
				i++
			}
			word = t[from:i]
		}
		i++ // the comma, or the last brace
		if !quoted && string(word) == "NULL" {
			v.list = append(v.list, value{})
			continue
		}
		one, err := of.value(word)
		if err != nil {
			return v, err
		}
		v.list = append(v.list, one)
	}
	return v, nil
}

// readHstore returns the JSON text of an hstore. Its keys stand in the order of a Java HashMap.
func readHstore(t []byte) (value, error) {
	type pair struct {
		key, value []byte
		hash       uint32
	}
	var pairs []pair
	word := func(i int) ([]byte, int) {
		var w []byte
		for i++; i < len(t) && t[i] != '"'; i++ {
			if t[i] == '\\' && i+1 < len(t) {
				i++
			}
			w = append(w, t[i])
		}
		if w == nil {
			w = []byte{}
		}
		return w, i + 1
	}
	for i := 0; i < len(t); {
		if t[i] == ',' || t[i] == ' ' {
			i++
			continue
		}
		if t[i] != '"' {
			return value{}, errValue
		}
		var p pair
		p.key, i = word(i)
		i += 2 // =>
		switch {
		case i < len(t) && t[i] == '"':
			p.value, i = word(i)
		case i+4 <= len(t) && string(t[i:i+4]) == "NULL":
			i += 4
		default:
			return value{}, errValue
		}
		var h uint32
		for _, u := range utf16.Encode([]rune(string(p.key))) {
			h = h*31 + uint32(u)
		}
		p.hash = h ^ h>>16
		pairs = append(pairs, p)
	}
	buckets := uint32(16)
	for len(pairs) > int(buckets)*3/4 {
		buckets *= 2
	}
	slices.SortStableFunc(pairs, func(a, b pair) int { return int(a.hash&(buckets-1)) - int(b.hash&(buckets-1)) })
	b := []byte{'{'}
	for i, p := range pairs {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendJSONChars(b, p.key), ':')
		if p.value == nil {
			b = append(b, "null"...)
		} else {
			b = appendJSONChars(b, p.value)
		}
	}
	return value{class: chars, b: append(b, '}')}, nil
}

// appendJSONChars appends text as Jackson writes it to a string: surrogate pairs stay as they are.
func appendJSONChars(b, s []byte) []byte {
	b = append(b, '"')
	for len(s) > 0 {
		n := bytes.IndexFunc(s, func(r rune) bool { return r > 0xFFFF })
		if n < 0 {
			n = len(s)
		}
		if n > 0 {
			at := len(b)
			b = appendJSONString(b, s[:n])
			b = append(b[:at], b[at+1:len(b)-1]...)
			s = s[n:]
			continue
		}
		b, s = append(b, s[:4]...), s[4:]
	}
	return append(b, '"')
}
