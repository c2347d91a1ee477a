//go:build debezium

package connect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
)

// RESTError is an answer of Connect's REST interface that is no success.
type RESTError struct {
	Code    int    `json:"error_code"`
	Message string `json:"message"`
}

func (e *RESTError) Error() string {
	return fmt.Sprintf("Kafka Connect answers %d: %s", e.Code, e.Message)
}

// Status is the state of a connector and its tasks.
type Status struct {
	Connector State `json:"connector"`
	Tasks     []State
}

// State is RUNNING, PAUSED, STOPPED, UNASSIGNED, FAILED and so on, with the Java trace of a failure.
type State struct {
	State string
	Trace string
}

// Offset is an offset of a connector: its source partition, and its place there. Place is null if a request deletes it.
type Offset struct {
	Partition map[string]any `json:"partition"`
	Place     map[string]any `json:"offset"`
}

// call sends a request to the worker and stores its answer in out, which may be nil.
func (w *Worker) call(method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		e := &RESTError{Code: resp.StatusCode, Message: string(answer)}
		_ = json.Unmarshal(answer, e)
		return e
	}
	if out == nil || len(answer) == 0 {
		return nil
	}
	return json.Unmarshal(answer, out)
}

func path(name, verb string) string {
	if verb != "" {
		verb = "/" + verb
	}
	return "/connectors/" + url.PathEscape(name) + verb
}

// Connectors returns the names of the connectors.
func (w *Worker) Connectors() (names []string, err error) {
	return names, w.call("GET", "/connectors", nil, &names)
}

// Put creates a connector, or gives it another configuration. It returns before the connector runs.
func (w *Worker) Put(name string, config map[string]string) error {
	return w.call("PUT", path(name, "config"), config, nil)
}

// Deploy creates a connector and waits until its task runs and reads its slot. It fails the test if the task fails.
func (w *Worker) Deploy(name string, config map[string]string) {
	w.t.Helper()
	if err := w.Put(name, config); err != nil {
		w.t.Fatalf("create connector %s: %v", name, err)
	}
	w.AwaitStreaming(name)
}

// AwaitStreaming waits until the connector's task runs and its slot has a reader. It fails the test if the task fails.
func (w *Worker) AwaitStreaming(name string) {
	w.t.Helper()
	w.Await(2*time.Minute, func() error {
		err := w.Streaming(name)
		var failed *TaskError
		if errors.As(err, &failed) {
			w.t.Fatal(err)
		}
		return err
	})
}

// TaskError says that a connector or its task has failed, and will not go on before somebody restarts it.
type TaskError struct{ Name, Trace string }

func (e *TaskError) Error() string {
	return fmt.Sprintf("connector %s has failed: %s", e.Name, e.Trace)
}

// Streaming returns nil if the connector's task runs and its slot has a reader, and a TaskError if the task has failed.
func (w *Worker) Streaming(name string) error {
	status, err := w.Status(name)
	if err != nil {
		return err
	}
	for _, s := range append(status.Tasks, status.Connector) {
		if s.State == "FAILED" {
			return &TaskError{name, s.Trace}
		}
	}
	if len(status.Tasks) == 0 || status.Tasks[0].State != "RUNNING" {
		return fmt.Errorf("connector %s: %+v", name, status)
	}
	config, err := w.Config(name)
	if err != nil {
		return err
	}
	return slotIsRead(config)
}

// slotIsRead returns nil if a process reads the connector's slot.
func slotIsRead(config map[string]string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(config["database.user"], config["database.password"]),
		Host: config["database.hostname"] + ":" + config["database.port"], Path: config["database.dbname"],
	}
	conn, err := pgx.Connect(ctx, u.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	var active bool
	err = conn.QueryRow(ctx, "SELECT active FROM pg_replication_slots WHERE slot_name = $1", config["slot.name"]).Scan(&active)
	if err == nil && !active {
		err = errors.New("nothing reads the slot " + config["slot.name"])
	}
	return err
}

// Config returns a connector's configuration.
func (w *Worker) Config(name string) (config map[string]string, err error) {
	return config, w.call("GET", path(name, "config"), nil, &config)
}

// Status returns a connector's state.
func (w *Worker) Status(name string) (s Status, err error) {
	return s, w.call("GET", path(name, "status"), nil, &s)
}

// Offsets returns the offsets that a connector has flushed.
func (w *Worker) Offsets(name string) ([]Offset, error) {
	var answer struct{ Offsets []Offset }
	err := w.call("GET", path(name, "offsets"), nil, &answer)
	return answer.Offsets, err
}

// SetOffsets gives other offsets to a connector, which must be stopped.
func (w *Worker) SetOffsets(name string, offsets []Offset) error {
	return w.call("PATCH", path(name, "offsets"), map[string]any{"offsets": offsets}, nil)
}

// ResetOffsets deletes the offsets of a connector, which must be stopped.
func (w *Worker) ResetOffsets(name string) error {
	return w.call("DELETE", path(name, "offsets"), nil, nil)
}

// Stop stops a connector and waits until it has no tasks: its offsets are flushed, and nothing reads its slot.
func (w *Worker) Stop(name string) {
	w.t.Helper()
	if err := w.call("PUT", path(name, "stop"), nil, nil); err != nil {
		w.t.Fatalf("stop connector %s: %v", name, err)
	}
	w.Await(time.Minute, func() error {
		status, err := w.Status(name)
		if err == nil && (status.Connector.State != "STOPPED" || len(status.Tasks) > 0) {
			err = fmt.Errorf("connector %s: %+v", name, status)
		}
		if err != nil {
			return err
		}
		config, err := w.Config(name)
		if err == nil && slotIsRead(config) == nil {
			err = errors.New("the slot of " + name + " is read")
		}
		return err
	})
}

// Pause asks a connector to pause. Its task keeps the slot.
func (w *Worker) Pause(name string) error { return w.call("PUT", path(name, "pause"), nil, nil) }

// Unstop lets a stopped or paused connector run. It returns before its task runs.
func (w *Worker) Unstop(name string) error { return w.call("PUT", path(name, "resume"), nil, nil) }

// Resume lets a stopped or paused connector run, and waits until it reads its slot.
func (w *Worker) Resume(name string) {
	w.t.Helper()
	if err := w.Unstop(name); err != nil {
		w.t.Fatalf("resume connector %s: %v", name, err)
	}
	w.AwaitStreaming(name)
}

// Restart restarts a connector with its tasks. It returns before they run.
func (w *Worker) Restart(name string) error {
	return w.call("POST", path(name, "restart")+"?includeTasks=true", nil, nil)
}

// Delete deletes a connector, and waits until it is gone. Its slot, its publication and its offsets stay.
func (w *Worker) Delete(name string) {
	w.t.Helper()
	if err := w.call("DELETE", path(name, ""), nil, nil); err != nil {
		w.t.Fatalf("delete connector %s: %v", name, err)
	}
	w.Await(time.Minute, func() error {
		var e *RESTError
		if _, err := w.Status(name); err == nil || !errors.As(err, &e) || e.Code != http.StatusNotFound {
			return fmt.Errorf("connector %s is still there: %w", name, err)
		}
		return nil
	})
}

// Connector returns the configuration of an outbox connector for the database at a URL, with Debezium's defaults for the
// router, StringConverter, the publication dbz_pub, the slot debezium, and no snapshot. over adds to it or replaces parts
// of it.
func Connector(databaseURL string, over map[string]string) map[string]string {
	u, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		panic(err)
	}
	config := map[string]string{
		"connector.class":             "io.debezium.connector.postgresql.PostgresConnector",
		"tasks.max":                   "1",
		"database.hostname":           u.Host,
		"database.port":               fmt.Sprint(u.Port),
		"database.user":               u.User,
		"database.password":           u.Password,
		"database.dbname":             u.Database,
		"topic.prefix":                "test_server",
		"plugin.name":                 "pgoutput",
		"slot.name":                   "debezium",
		"publication.name":            "dbz_pub",
		"publication.autocreate.mode": "disabled",
		"snapshot.mode":               "no_data",
		"table.include.list":          "public.outbox",
		"poll.interval.ms":            "10",
		"key.converter":               "org.apache.kafka.connect.storage.StringConverter",
		"value.converter":             "org.apache.kafka.connect.storage.StringConverter",
		"header.converter":            "org.apache.kafka.connect.storage.SimpleHeaderConverter",
		"transforms":                  "outbox",
		"transforms.outbox.type":      "io.debezium.transforms.outbox.EventRouter",
		// Connect creates the topics, because the brokers of the tests do not.
		"topic.creation.default.partitions":         "3",
		"topic.creation.default.replication.factor": "1",
	}
	maps.Copy(config, over)
	return config
}
