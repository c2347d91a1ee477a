package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cmd/internal/app"
)

// TestMain runs the tests, or is the process that TestMainEndsAsAsked starts.
func TestMain(m *testing.M) {
	if mode := os.Getenv("APP_TEST_MAIN"); mode != "" {
		app.Main(func(ctx context.Context, _ []string, _ func(string) string, stdout, _ io.Writer) error {
			if mode == "parts" {
				return fmt.Errorf("nothing was changed: %w", parted{})
			}
			if mode == "fail" {
				return errors.Join(errors.New("first thing"), errors.New("second thing:\n\tone\n\tone\n\ttwo"))
			}
			if mode == "verdict" {
				return fmt.Errorf("status: %w", app.ExitError(2))
			}
			fmt.Fprintln(stdout, "up")
			<-ctx.Done()
			fmt.Fprintln(stdout, context.Cause(ctx))
			if os.Getenv("APP_TEST_MAIN") == "unfinished" {
				return &app.InterruptedError{Err: fmt.Errorf("half of it is done: %w", ctx.Err())}
			}
			return ctx.Err()
		})
	}
	app.Hurry()
	goleak.VerifyTestMain(m)
}

func TestMainEndsAsAsked(t *testing.T) {
	child := func(mode string) *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "APP_TEST_MAIN="+mode)
		return cmd
	}
	t.Run("an error is printed line by line and the code is 1", func(t *testing.T) {
		var stderr bytes.Buffer
		cmd := child("fail")
		cmd.Stderr = &stderr
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("exit code %d, want 1", code)
		}
		if want := "app.test: first thing\napp.test: second thing: one two\n"; stderr.String() != want {
			t.Errorf("stderr %q, want %q", stderr.String(), want)
		}
	})
	t.Run("a command that a signal ends before its work is done says so, and the code is 130", func(t *testing.T) {
		var stderr bytes.Buffer
		cmd := child("unfinished")
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(stdout, make([]byte, len("up\n"))); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 || stderr.String() != "app.test: interrupted: half of it is done: context canceled\n" {
			t.Errorf("exit code %d, want 130; stderr %q", code, stderr.String())
		}
	})
	t.Run("an exit code is all that is left to say", func(t *testing.T) {
		var stderr bytes.Buffer
		cmd := child("verdict")
		cmd.Stderr = &stderr
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != 2 || stderr.Len() > 0 {
			t.Errorf("exit code %d, want 2; stderr %q", code, stderr.String())
		}
	})
	t.Run("an error of parts is one line where nobody looks, and a line each on a terminal", func(t *testing.T) {
		out, _ := child("parts").CombinedOutput()
		if want := "app.test: nothing was changed: " + (parted{}).Error() + "\n"; string(out) != want {
			t.Errorf("got %q, want %q", out, want)
		}
		script, err := exec.LookPath("script")
		if err != nil {
			t.Skip("there is no script(1), which makes a terminal")
		}
		cmd := exec.Command(script, "-qec", os.Args[0], "/dev/null")
		cmd.Env = append(os.Environ(), "APP_TEST_MAIN=parts")
		seen, _ := cmd.CombinedOutput()
		want := "app.test: nothing was changed\n  found: " + strings.TrimSpace(strings.Repeat("a word ", 13)) + "\n         " + strings.TrimSpace(strings.Repeat("a word ", 7)) +
			"\n  means: it means that\n  run: this\n"
		if got := strings.ReplaceAll(string(seen), "\r", ""); got != want {
			t.Errorf("on a terminal:\n%s\nwant\n%s", got, want)
		}
	})
	t.Run("SIGTERM ends the context with its name and the code is 0", func(t *testing.T) {
		cmd := child("wait")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		said, _ := io.ReadAll(out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("asked to stop, it ended with: %v", err)
		}
		if !strings.Contains(string(said), "terminated") {
			t.Errorf("cause %q does not name the signal", said)
		}
	})
}

type parted struct{}

func (p parted) Error() string {
	return p.Parts()[0][1] + ": it means that; this"
}

func (parted) Parts() [][2]string {
	return [][2]string{{"found", strings.TrimSpace(strings.Repeat("a word ", 20))}, {"means", "it means that"}, {"run", "this"}}
}

func TestLoggerWritesOneJSONObjectALine(t *testing.T) {
	var out bytes.Buffer
	log, err := app.NewLogger(&out, "info", "")
	if err != nil {
		t.Fatal(err)
	}
	log.Debug().Msg("not shown")
	log.Info().Str("slot", "walpost").Msg("shown")
	var line struct{ Level, Time, Slot, Message string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	at, err := time.Parse("2006-01-02T15:04:05.000Z", line.Time)
	if err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("time %q is not now in UTC to the millisecond: %v", line.Time, err)
	}
	if line.Message != "shown" || line.Slot != "walpost" || line.Level != "info" {
		t.Errorf("wrong line: %+v", line)
	}
}

func TestLoggerWritesForEyesWhenAsked(t *testing.T) {
	var out bytes.Buffer
	log, err := app.NewLogger(&out, "info", "console")
	if err != nil {
		t.Fatal(err)
	}
	log.Info().Str("slot", "walpost").Msg("shown")
	log.Error().Err(errors.New(`table "x" has: ` + strings.Repeat("many words ", 10) + "end")).Msg("halted")
	if want := "ERR halted\n  error: table \"x\" has: " + strings.TrimSpace(strings.Repeat("many words ", 7)) + "\n         many words many words many words end\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if !strings.Contains(out.String(), "INF shown slot=walpost") {
		t.Errorf("got %q", out.String())
	}
	out.Reset()
	log.Error().Err(errors.New("f: m; r")).Str("found", "f").Str("means", "m").Str("run", "r").Msg("halted")
	if want := "ERR halted\n  found: f\n  means: m\n  run: r\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestLoggerNamesEveryWrongSetting(t *testing.T) {
	_, err := app.NewLogger(io.Discard, "loud", "xml")
	if err == nil || !strings.Contains(err.Error(), "LOG_LEVEL") || !strings.Contains(err.Error(), "LOG_FORMAT") {
		t.Errorf("got %v", err)
	}
}

func TestParse(t *testing.T) {
	type cli struct {
		HTTP  string   `default:"127.0.0.1:1" env:"APP_TEST_HTTP"`
		Serve struct{} `cmd:"" default:"1"`
	}
	for name, c := range map[string]struct {
		args []string
		env  string
		want string
	}{
		"default":              {nil, "", "127.0.0.1:1"},
		"environment":          {nil, "env:2", "env:2"},
		"flag before the rest": {[]string{"serve", "--http", "flag:3"}, "env:2", "flag:3"},
	} {
		t.Run(name, func(t *testing.T) {
			var got cli
			command, err := app.Parse("test", "", &got, c.args, func(string) string { return c.env }, io.Discard, io.Discard)
			if err != nil || command.Command() != "serve" || got.HTTP != c.want {
				t.Errorf("got %q, %v; want %q", got.HTTP, err, c.want)
			}
		})
	}
	t.Run("help is printed and nothing is run", func(t *testing.T) {
		var out bytes.Buffer
		command, err := app.Parse("test", "about", &cli{}, []string{"--help"}, func(string) string { return "" }, &out, io.Discard)
		if command != nil || err != nil || !strings.Contains(out.String(), "APP_TEST_HTTP") {
			t.Errorf("got %v, %v, %q", command, err, out.String())
		}
	})
	t.Run("an unknown flag is named", func(t *testing.T) {
		_, err := app.Parse("test", "", &cli{}, []string{"--nope"}, func(string) string { return "" }, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "--nope") {
			t.Errorf("got %v", err)
		}
	})
}

func TestServeAnswersOperatorsAndFinishesRequestsOnStop(t *testing.T) {
	reg, mux := app.NewRegistry(), http.NewServeMux()
	var notReady error
	app.OpsRoutes(mux, reg, func(context.Context) error { return notReady })
	begun, finish := make(chan struct{}), make(chan struct{})
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-finish
		if r.Context().Err() != nil {
			t.Error("the request saw the stop")
		}
		w.WriteHeader(http.StatusTeapot)
	})
	mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("for the test") })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	var logged bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		ended <- app.Serve(ctx, ln, app.Instrument(reg, mux), zerolog.New(zerolog.SyncWriter(&logged)))
	}()

	healthcheck := func() error {
		return (&app.Healthcheck{URL: "http://" + ln.Addr().String() + "/readyz"}).Run(t.Context())
	}
	defer http.DefaultClient.CloseIdleConnections()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	get := func(path string) (int, string) {
		res, err := client.Get("http://" + ln.Addr().String() + path)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(body)
	}
	if status, _ := get("/livez"); status != 200 {
		t.Errorf("livez %d", status)
	}
	if status, _ := get("/readyz"); status != 200 {
		t.Errorf("readyz %d", status)
	}
	if err := healthcheck(); err != nil {
		t.Errorf("healthcheck of a ready server: %v", err)
	}
	notReady = errors.New("the database does not answer: start it")
	if err := healthcheck(); err == nil || !strings.Contains(err.Error(), "503 Service Unavailable: "+notReady.Error()) {
		t.Errorf("healthcheck of a server that is not ready: %v", err)
	}
	if status, body := get("/readyz"); status != 503 || body != notReady.Error()+"\n" {
		t.Errorf("readyz %d %q", status, body)
	}
	get("/nowhere")
	_, metrics := get("/metrics")
	for _, want := range []string{
		`http_requests_total{route="GET /readyz",status="503"} 2`, `http_requests_total{route="none",status="404"} 1`,
		"process_resident_memory_bytes", "go_goroutines",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}

	if res, err := client.Get("http://" + ln.Addr().String() + "/panic"); err == nil {
		res.Body.Close()
		t.Error("a panic was answered")
	}

	slow := make(chan int, 1)
	go func() {
		status, _ := get("/slow")
		slow <- status
	}()
	<-begun
	cancel(errors.New("asked to"))
	select {
	case err := <-ended:
		t.Errorf("ended with a request in progress: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if status := <-slow; status != http.StatusTeapot {
		t.Errorf("the request in progress got %d", status)
	}
	if err := <-ended; err != nil {
		t.Errorf("stopped with %v", err)
	}
	for line := range strings.Lines(logged.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	if !strings.Contains(logged.String(), "panic serving") {
		t.Errorf("the log does not have the panic: %s", logged.String())
	}
	if err := healthcheck(); err == nil {
		t.Error("healthcheck of a server that is gone is well")
	}
	if !strings.Contains(logged.String(), `"cause":"asked to"`) {
		t.Errorf("the log does not say why it stopped: %s", logged.String())
	}
}

func TestHealthcheckShowsNoPassword(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	for _, url := range []string{
		strings.Replace(server.URL, "//", "//user:"+cdctest.Canary+"@", 1) + "/?token=" + cdctest.Canary, "http://user:" + cdctest.Canary + "@127.0.0.1:1/",
		"http://user:" + cdctest.Canary + "@[", "http://user:" + cdctest.Canary + "%zz@host/", "http://user:" + cdctest.Canary + "/@host:1/",
	} {
		err := (&app.Healthcheck{URL: url}).Run(t.Context())
		if err == nil {
			t.Errorf("%s is well", url)
		}
		cdctest.NoSecret(t, "healthcheck", fmt.Sprint(err))
	}
}
