//go:build debezium

package connect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/devenv"
)

// Config describes a Connect worker.
type Config struct {
	// Brokers are the addresses of Kafka.
	Brokers []string
	// Distributed keeps offsets, connectors and their states in topics of Kafka. Else offsets are in the file
	// Worker.OffsetFile, and a worker that starts again has no connectors: Deploy them again.
	Distributed bool
	// Topics is the prefix of a distributed worker's group and topics: PREFIX-offsets, PREFIX-configs, PREFIX-status.
	// Empty means a name that no other test has.
	Topics string
	// Settings are worker properties that add to those of this package or replace them.
	Settings map[string]string
	// JVM are options of java. Nil means options of a short start and small memory; a benchmark gives its own.
	JVM []string
}

// Worker is a Connect worker in a process of this test.
type Worker struct {
	// OffsetFile is the file with the offsets of a worker that is not distributed.
	OffsetFile string
	// OffsetTopic is the topic with the offsets of a distributed worker.
	OffsetTopic string

	t      testing.TB
	cfg    Config
	jars   Jars
	folder string
	url    string
	log    text
	client http.Client

	cmd   *exec.Cmd
	ended chan struct{}
}

// text is a log that tests can read while the process writes it.
type text struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *text) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *text) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// quick are java's options for tests: the fast compiler only, and little memory.
var quick = []string{"-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"}

const log4j = `
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss.SSS} %-5p %X{connector.context}%c{1}: %m%n%ex
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
logger.metrics.name = org.apache.kafka.common.metrics
logger.metrics.level = warn
logger.utils.name = org.apache.kafka.common.utils
logger.utils.level = warn
logger.jetty.name = org.eclipse.jetty
logger.jetty.level = warn
logger.rest.name = org.apache.kafka.connect.runtime.rest.RestServer
logger.rest.level = warn
`

// Start starts a worker and waits until its REST interface answers. The worker ends with the test.
func Start(t testing.TB, cfg Config) *Worker {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	jars, err := FetchJars(ctx)
	if err != nil {
		t.Fatal(err)
	}
	port, err := devenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	w := &Worker{t: t, cfg: cfg, jars: jars, folder: folder, url: fmt.Sprintf("http://127.0.0.1:%d", port)}
	settings := map[string]string{
		"bootstrap.servers": strings.Join(cfg.Brokers, ","),
		"listeners":         w.url,
		"plugin.path":       jars.Plugins(),
		"plugin.discovery":  "service_load", // the default looks into every class, which takes 4 to 12 seconds
		"key.converter":     "org.apache.kafka.connect.json.JsonConverter",
		"value.converter":   "org.apache.kafka.connect.json.JsonConverter",
	}
	if cfg.Distributed {
		if cfg.Topics == "" {
			cfg.Topics = cdctest.Name(t, "connect")
		}
		w.OffsetTopic = cfg.Topics + "-offsets"
		maps.Copy(settings, map[string]string{
			"group.id":             cfg.Topics,
			"offset.storage.topic": w.OffsetTopic, "offset.storage.replication.factor": "1", "offset.storage.partitions": "5",
			"config.storage.topic": cfg.Topics + "-configs", "config.storage.replication.factor": "1",
			"status.storage.topic": cfg.Topics + "-status", "status.storage.replication.factor": "1", "status.storage.partitions": "1",
			// A worker that was killed is still a member of its group until its session ends.
			"session.timeout.ms": "6000", "heartbeat.interval.ms": "500", "scheduled.rebalance.max.delay.ms": "0",
		})
	} else {
		w.OffsetFile = filepath.Join(folder, "connect.offsets")
		settings["offset.storage.file.filename"] = w.OffsetFile
	}
	maps.Copy(settings, cfg.Settings)
	w.cfg = cfg
	err = errors.Join(
		os.WriteFile(w.file("worker.properties"), []byte(properties(settings)), 0o600),
		os.WriteFile(w.file("log4j2.properties"), []byte(log4j), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Kill()
		w.client.CloseIdleConnections()
		if t.Failed() {
			t.Logf("the end of the worker's log:\n%s", tailOf(w.Log(), 60))
		}
	})
	w.Begin()
	return w
}

func (w *Worker) file(name string) string { return filepath.Join(w.folder, name) }

// Begin starts a worker again that was ended with Kill or Terminate, with the same address, offsets and settings.
func (w *Worker) Begin() {
	w.t.Helper()
	class := "org.apache.kafka.connect.cli.ConnectStandalone"
	if w.cfg.Distributed {
		class = "org.apache.kafka.connect.cli.ConnectDistributed"
	}
	jvm := w.cfg.JVM
	if jvm == nil {
		jvm = quick
	}
	args := append(slices.Clone(jvm), "-Dlog4j2.configurationFile="+w.file("log4j2.properties"), "-cp", w.jars.ClassPath(), class, w.file("worker.properties"))
	w.cmd = exec.Command("java", args...)
	w.cmd.Dir = w.folder
	w.cmd.Stdout, w.cmd.Stderr = &w.log, &w.log
	var err error
	if w.ended, err = start(w.cmd, syscall.SIGKILL); err != nil {
		w.t.Fatalf("start Kafka Connect: %v", err)
	}
	w.Await(2*time.Minute, func() error {
		_, err := w.Connectors()
		return err
	})
}

// Await calls cond until it returns nil. It fails the test with cond's last error if that takes longer, or if the worker
// ends.
func (w *Worker) Await(within time.Duration, cond func() error) {
	w.t.Helper()
	cdctest.Eventually(w.t, within, func() error {
		err := cond()
		select {
		case <-w.ended:
			w.t.Fatalf("Kafka Connect has ended: %v; the end of its log:\n%s", w.cmd.ProcessState, tailOf(w.Log(), 40))
		default:
		}
		return err
	})
}

// URL returns the address of the worker's REST interface.
func (w *Worker) URL() string { return w.url }

// PID returns the id of the worker's process.
func (w *Worker) PID() int { return w.cmd.Process.Pid }

// Log returns what the worker's processes have written so far.
func (w *Worker) Log() string { return w.log.String() }

// Kill ends the worker as kill -9 does, and waits until it has ended. A worker that has ended already is no error.
func (w *Worker) Kill() { w.end(syscall.SIGKILL) }

// Terminate ends the worker as SIGTERM does: it stops its tasks and flushes their offsets.
func (w *Worker) Terminate() {
	w.t.Helper()
	w.end(syscall.SIGTERM)
}

func (w *Worker) end(sig os.Signal) {
	w.t.Helper()
	if w.ended == nil {
		return
	}
	_ = w.cmd.Process.Signal(sig)
	select {
	case <-w.ended:
	case <-time.After(time.Minute):
		_ = w.cmd.Process.Kill()
		<-w.ended
		w.t.Errorf("Kafka Connect did not end within a minute after %v and was killed", sig)
	}
}

// properties returns the text of a Java properties file.
func properties(settings map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s=%s\n", name, strings.NewReplacer("\\", "\\\\", "\n", "\\n").Replace(settings[name]))
	}
	return b.String()
}

// tailOf returns the last n lines of s.
func tailOf(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
