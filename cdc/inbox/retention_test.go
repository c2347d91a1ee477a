package inbox

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestWhyTheInboxForgetsNothing: for each kind of retention the reason is a sentence that a person understands.
func TestWhyTheInboxForgetsNothing(t *testing.T) {
	for _, c := range []struct {
		name     string
		settings map[string]string
		denied   error
		want     string // "": the inbox forgets
	}{
		{"shorter", map[string]string{"retention.ms": "604800000", "cleanup.policy": "delete"}, nil, ""},
		{"as long", map[string]string{"retention.ms": "2592000000"}, nil, "the topic keeps its records for 30 days, and the inbox would for 30 days: make the inbox's retention longer"},
		{"not in days", map[string]string{"retention.ms": "2595600000"}, nil, "for 721 hours"},
		{"no limit", map[string]string{"retention.ms": "-1", "cleanup.policy": "delete"}, nil, "the topic never deletes its records"},
		{"longest", map[string]string{"retention.ms": "9223372036854775807"}, nil, "for 9223372036854775807 ms"},
		{"by bytes, without a time limit", map[string]string{"retention.ms": "-1", "retention.bytes": "1000"}, nil, "the topic never deletes its records"},
		{"by bytes and time", map[string]string{"retention.ms": "604800000", "retention.bytes": "1000"}, nil, ""},
		{"compacted", map[string]string{"retention.ms": "604800000", "cleanup.policy": "compact", "delete.retention.ms": "86400000"}, nil, "the topic is compacted"},
		{"compacted and deleted", map[string]string{"retention.ms": "604800000", "cleanup.policy": "compact,delete"}, nil, ""},
		{"unknown", map[string]string{}, nil, "the broker does not say"},
		{"not allowed", nil, errors.Join(kerr.TopicAuthorizationFailed), "allow DESCRIBE_CONFIGS"},
	} {
		var configs []kadm.Config
		for key, value := range c.settings {
			configs = append(configs, kadm.Config{Key: key, Value: &value})
		}
		got := remembers(configs, 30*24*time.Hour, c.denied)
		if !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if strings.Contains(got, "-0.0") || strings.Contains(got, "-1") {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

// TestTimesOfOtherProducersCanBeShown: a producer sets the time of a record, and JSON has four digits for a year.
func TestTimesOfOtherProducersCanBeShown(t *testing.T) {
	for _, at := range []time.Time{time.Unix(-1e11, 0), time.Unix(1e12, 0), time.Now()} {
		if _, err := json.Marshal(newEvent(&kgo.Record{Timestamp: at}).Time); err != nil {
			t.Errorf("%d: %v", at.Unix(), err)
		}
	}
}
