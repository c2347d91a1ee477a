package upcast_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/inbox/upcast"
)

// A parcel had a weight in pounds, then in grams, and since version 3 has a sender.
var steps = upcast.Steps{"Sent": {
	func(fields map[string]json.RawMessage) error {
		if string(fields["pounds"]) != "2" {
			return errors.New("pounds are missing")
		}
		fields["grams"] = json.RawMessage("907")
		delete(fields, "pounds")
		return nil
	},
	func(fields map[string]json.RawMessage) error {
		fields["sender"] = json.RawMessage(`"of " `)
		return nil
	},
}}

func TestEveryVersionIsReadAsTheNewest(t *testing.T) {
	for _, c := range []struct{ eventType, value, want string }{
		{"Sent", `{"schemaVersion": 1, "pounds": 2}`, `{"pounds":0,"grams":907,"sender":"of "}`},
		{"Sent", `{"schemaVersion": 2, "grams": 5, "pounds": 2}`, `{"pounds":2,"grams":5,"sender":"of "}`},
		{"Sent", `{"schemaVersion": 3, "grams": 5, "sender": "ada", "giftWrap": {"ribbon": true}}`, `{"pounds":0,"grams":5,"sender":"ada"}`},
		{"Lost", `{"schemaVersion": 1, "grams": 5, "later": [1]}`, `{"pounds":0,"grams":5,"sender":""}`},
		{"Sent", `{"schemaVersion": 4}`, "schemaVersion is 4 and not 1 to 3: this program does not know it"},
		{"Sent", `{"schemaVersion": 0}`, "schemaVersion is 0 and not 1 to 3: this program does not know it"},
		{"Lost", `{"schemaVersion": 2}`, "schemaVersion is 2 and not 1: this program does not know it"},
		{"Sent", `{"grams": 5}`, "schemaVersion is missing"},
		{"Sent", `{"schemaVersion": "1"}`, "schemaVersion is a string of the wrong kind (at byte 21)"},
		{"Sent", `{"schemaVersion": 1}`, "from version 1 to 2: pounds are missing"},
		{"Sent", `{"schemaVersion": 2, "grams": "secret"}`, "grams is a string of the wrong kind"},
		{"Sent", `[1]`, "a JSON array where an object belongs"},
		{"Sent", `{"schemaVersion": 1} secret`, "not JSON, at byte 22"},
		{"Sent", "", "the value is empty"},
		{"Sent", "\xff", "the value is not UTF-8"},
		{"Sent", strings.Repeat(" ", 1<<20+1), "the value is 1048577 bytes, more than 1048576"},
	} {
		var into struct {
			Pounds int    `json:"pounds"`
			Grams  int    `json:"grams"`
			Sender string `json:"sender"`
		}
		got := ""
		if err := steps.Decode(c.eventType, []byte(c.value), &into); err != nil {
			got = err.Error()
		} else if text, err := json.Marshal(into); err == nil {
			got = string(text)
		}
		if !strings.HasPrefix(got, c.want) || strings.Contains(got, "secret") {
			t.Errorf("%s %.60s: got %s, want %s", c.eventType, c.value, got, c.want)
		}
	}
}
