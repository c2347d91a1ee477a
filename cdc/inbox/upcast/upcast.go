// Package upcast reads an event of any version that a consumer knows as if it had been written in the newest version.
//
// An event has its version in the field schemaVersion. A consumer has one decoder, for the newest version, and one Step
// from each version to the next. An event of version 1 passes through all steps, an event of the newest version through
// none. So a consumer learns a version before the producer writes it, and can always read the older events on the
// topic.
package upcast

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// maxBytes is far larger than any event, and small enough to decode safely.
const maxBytes = 1 << 20

// A Step converts the fields of an event from one version to the next. It leaves schemaVersion alone.
type Step func(fields map[string]json.RawMessage) error

// Steps has, for each event type, the steps from version 1 to 2, from 2 to 3, and so on. The newest version is the
// number of steps plus one; a type without steps has version 1 only.
type Steps map[string][]Step

// Decode reads the JSON of an event into the struct of its newest version. Fields that the struct does not have are
// ignored. An error names the mistake and quotes nothing of the event; another try would fail in the same way.
func (s Steps) Decode(eventType string, value []byte, into any) error {
	switch {
	case len(value) == 0:
		return errors.New("the value is empty")
	case len(value) > maxBytes:
		return fmt.Errorf("the value is %d bytes, more than %d", len(value), maxBytes)
	case !utf8.Valid(value):
		return errors.New("the value is not UTF-8")
	}
	var of struct {
		SchemaVersion *int `json:"schemaVersion"`
	}
	if err := json.Unmarshal(value, &of); err != nil {
		return describe(err)
	}
	steps := s[eventType]
	switch newest := len(steps) + 1; {
	case of.SchemaVersion == nil:
		return errors.New("schemaVersion is missing")
	case *of.SchemaVersion < 1 || *of.SchemaVersion > newest:
		known := "1"
		if newest > 1 {
			known += fmt.Sprintf(" to %d", newest)
		}
		return fmt.Errorf("schemaVersion is %d and not %s: this program does not know it", *of.SchemaVersion, known)
	case *of.SchemaVersion < newest:
		var err error
		if value, err = raise(value, *of.SchemaVersion, steps); err != nil {
			return err
		}
	}
	if err := json.Unmarshal(value, into); err != nil {
		return describe(err)
	}
	return nil
}

func raise(value []byte, version int, steps []Step) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(value, &fields); err != nil {
		return nil, describe(err)
	}
	for ; version <= len(steps); version++ {
		if err := steps[version-1](fields); err != nil {
			return nil, fmt.Errorf("from version %d to %d: %w", version, version+1, err)
		}
	}
	raised, err := json.Marshal(fields)
	if err != nil {
		return nil, describe(err)
	}
	return raised, nil
}

// describe returns encoding/json's finding without its quotations of the text, which may contain anybody's data.
func describe(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("not JSON, at byte %d", syntax.Offset)
	case errors.As(err, &kind):
		got, _, _ := strings.Cut(kind.Value, " ")
		if kind.Field == "" {
			return fmt.Errorf("a JSON %s where an object belongs", got)
		}
		return fmt.Errorf("%s is a %s of the wrong kind (at byte %d)", kind.Field, got, kind.Offset)
	default:
		return errors.New("not the JSON of an event")
	}
}
