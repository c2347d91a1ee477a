package main

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/walpost/walpost/cdc/cdctest"
)

// TestNoSecretIsSeen: at trace, with the Canary in each password and in each row, nothing that a relay's process writes until it crashes
// shows it, and no command. The harness looks.
func TestNoSecretIsSeen(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "walpost", cdctest.Canary))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	s := newTestbedOn(t, cdctest.Database(t), cluster.ListenAddrs())
	s.Env["LOG_LEVEL"], s.Env["WALPOST_POISON_POLICY"] = "trace", "dead_letter"
	s.Env["WALPOST_KAFKA_SASL_MECHANISM"], s.Env["WALPOST_KAFKA_SASL_USERNAME"], s.Env["WALPOST_KAFKA_SASL_PASSWORD"] = "scram-sha-256", "walpost", cdctest.Canary
	s.Env["WALPOST_CLEANUP_URL"] = s.AdminURL
	s.MustRun("init")
	s.MustRun("init", "--dry-run")
	s.Env["WALPOST_PPROF"] = "0.0.0.0:0"
	s.MustRefuse("pprof (WALPOST_PPROF): 0.0.0.0:0 is not on loopback", "relay")
	s.Env["WALPOST_PPROF"] = "127.0.0.1:0"
	r := s.SpawnRelay()
	r.WaitForLog(30*time.Second, `"streaming"`)
	for _, aggregateType := range []string{"order", "unknown", cdctest.Canary} {
		s.Exec(`INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, payload) VALUES (gen_random_uuid(), 'order', 'k', 'OrderPaid', jsonb_build_object('a', $1::text)),
			(gen_random_uuid(), $2, 'k', 'OrderPaid', jsonb_build_object('a', $1::text))`, cdctest.Canary, strings.Replace(aggregateType, cdctest.Canary, "other", 1))
	}
	s.WaitUntilConfirmed(30 * time.Second)
	for _, path := range []string{"/readyz", "/livez", "/metrics", "/status", "/nowhere", "/status?x=" + cdctest.Canary} {
		r.Get(t, path)
	}
	for _, command := range []string{"status", "status --json", "doctor", "doctor --json", "dlq list", "cleanup --dry-run", "--version"} {
		_, _ = s.Run(strings.Fields(command)...)
	}
	r.WaitForLog(30*time.Second, `"serving profiles"`)
	if said := r.Get(t, "/debug/pprof/"); !strings.HasPrefix(said, "404") {
		t.Errorf("profiles are on the operator's address: %.20s", said)
	}
	r.Signal(syscall.SIGQUIT)
	r.WaitUntilEnded(30 * time.Second)
	if log := r.Log.String(); !strings.Contains(log, "goroutine ") || !strings.Contains(log, `"published"`) {
		t.Errorf("it has not crashed, or not at trace: %s", log)
	}
	other := s.Copy()
	other.Env["WALPOST_KAFKA_SASL_PASSWORD"] = "not " + cdctest.Canary
	if _, err := other.Run("status"); err == nil {
		t.Error("Kafka takes another password")
	}
}
