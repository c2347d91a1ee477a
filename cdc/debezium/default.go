package debezium

import (
	"regexp"
	"strings"

	"github.com/walpost/walpost/cdc"
)

var (
	literal  = regexp.MustCompile(`'([^\n\r\x{85}\x{2028}\x{2029}]*?)'`)
	function = regexp.MustCompile(`^[(]?[A-Za-z0-9_.]+\((?:.+(?:, ?.+)*)?\)`)
)

// placeholders are what Debezium takes for a default that a function computes, by type.
var placeholders = map[uint32]string{
	oidBit: "00", oidVarbit: "0", oidBool: "false", oidBPChar: "", oidVarchar: "", oidText: "", oidNumeric: "0.0", oidFloat4: "0.0",
	oidFloat8: "0.0", oidInt2: "0", oidInt4: "0", oidInt8: "0", oidJSON: "{}", oidJSONB: "{}", oidXML: "",
	oidUUID: "00000000-0000-0000-0000-000000000000", oidDate: "1970-01-01", oidTime: "00:00:00", oidTimestamp: "1970-01-01 00:00:00",
	oidTimestamptz: "1970-01-01 00:00:00+00",
}

// sqlNames are the types with defaults as the catalog writes them.
var sqlNames = map[uint32]string{
	oidBit: "bit", oidVarbit: "bit varying", oidBool: "boolean", oidBPChar: "character", oidVarchar: "character varying", oidText: "text",
	oidNumeric: "numeric", oidFloat4: "real", oidFloat8: "double precision", oidInt2: "smallint", oidInt4: "integer", oidInt8: "bigint",
	oidJSON: "json", oidJSONB: "jsonb", oidXML: "xml", oidUUID: "uuid", oidDate: "date", oidTime: "time", oidTimestamp: "timestamp",
	oidTimestamptz: "timestamp", oidInterval: "interval",
}

// setDefault sets the default that Debezium reads from the column's expression. It stands for NULL in headers, keys,
// payloads and envelopes, also where the row has NULL by intention.
func setDefault(col *column, c *cdc.Column, o *Options) error {
	if c.Default == "" || c.Domain {
		return nil
	}
	expression := strings.TrimSpace(c.Default)
	var word string
	if c.Labels != nil {
		before, cast, ok := cutLast(expression, "::")
		if !ok || bareType(cast) != bareType(c.TypeName) || len(before) < 2 || before[0] != '\'' || before[len(before)-1] != '\'' {
			return nil
		}
		word = before[1 : len(before)-1]
	} else {
		name, known := sqlNames[c.Type]
		if !known || !strings.HasPrefix(c.TypeName, name) && c.TypeName != "bpchar" {
			return nil
		}
		placeholder, fixed := placeholders[c.Type]
		switch lower := strings.ToLower(expression); {
		case function.MatchString(expression) || lower == "current_timestamp" || lower == "current_time" || lower == "current_date" ||
			lower == "localtime" || lower == "localtimestamp":
			if !fixed {
				return nil
			}
			word = placeholder
		case !strings.Contains(expression, "'"):
			if strings.HasPrefix(expression, "NULL::") {
				return nil
			}
			word = expression
		default:
			m := literal.FindStringSubmatch(expression)
			if m == nil {
				return nil
			}
			word = m[1]
		}
	}
	if strings.HasSuffix(word, "infinity") && (c.Type == oidDate || c.Type == oidTimestamp || c.Type == oidTimestamptz) {
		return &unsupportedError{c.Name, "has the default infinity, which Debezium computes wrongly: drop the default"}
	}
	v, ok := parseDefault(col, c, word)
	if ok && v.class != null && v.class != object {
		col.fallback = &v
	}
	return nil
}

// parseDefault reads the default's word. What Debezium cannot read is no default.
func parseDefault(col *column, c *cdc.Column, word string) (value, bool) {
	switch c.Type {
	case oidBool:
		return value{class: truth, n: one(strings.EqualFold(word, "true"))}, true
	case oidBit, oidVarbit:
		if strings.Trim(word, "01") != "" {
			return value{}, false
		}
	case oidTimestamp, oidDate:
		if !strings.Contains(word, ":") && c.Type == oidTimestamp {
			word += " 00:00:00"
		}
	case oidTime:
		if strings.Count(word, ":") == 1 {
			word += ":00"
		}
	}
	v, err := col.value([]byte(word))
	return v, err == nil
}

func cutLast(s, separator string) (before, after string, found bool) {
	at := strings.LastIndex(s, separator)
	if at < 0 {
		return s, "", false
	}
	return s[:at], s[at+len(separator):], true
}
