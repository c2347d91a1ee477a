package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/pipeline"
)

const arrivedOnce = "twice 0, missing 0."

// TestKeys presses each key of one demo, on a terminal if the system can make one, and watches the page as a person
// does.
func TestKeys(t *testing.T) {
	cdctest.Long(t, "runs every process of the demo")
	t.Parallel()
	script, err := exec.LookPath("script")
	terminal := err == nil
	demo := &child{}
	if terminal {
		demo = spawnProgram(t, script, "-qefc", os.Args[0]+"; code=$?; stty -a; exit $code", "/dev/null")
	} else {
		demo = spawn(t)
	}
	press := func(key string) {
		if !terminal {
			key += "\n"
		}
		demo.press(key)
	}
	demo.says("The relay's page: http://")
	page := regexp.MustCompile(`The relay's page: (http://\S+)/`).FindStringSubmatch(demo.out.String())[1]
	if status, text := get(t, page+"/"); status != http.StatusServiceUnavailable || !strings.Contains(text, "starting") || !strings.Contains(text, `http-equiv="refresh"`) {
		t.Errorf("while it starts the page is %d: %s", status, text)
	}
	demo.says("q  quit")
	orders := func() (s pipeline.Status) {
		var all []pipeline.Status
		if code, text := get(t, page+"/status"); code == http.StatusOK {
			if err := json.Unmarshal([]byte(text), &all); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			return all[0]
		}
		return s
	}
	until := func(what string, reached func(pipeline.Status) bool) {
		t.Helper()
		cdctest.Eventually(t, time.Minute, func() error {
			if s := orders(); !reached(s) {
				return fmt.Errorf("%s: %+v\n%s", what, s, demo.out.String())
			}
			return nil
		})
	}
	streams := func(more int64) func(pipeline.Status) bool {
		return func(s pipeline.Status) bool { return s.Role == "streaming" && s.Published >= more }
	}
	letters := func(n int) func(pipeline.Status) bool {
		return func(s pipeline.Status) bool { return s.DeadLetters != nil && *s.DeadLetters == n }
	}

	until("the load arrives", streams(10))
	press("p")
	demo.says("A poison row is committed: key gift-1")
	until("a dead letter", letters(1))
	press("k")
	demo.says(": the relay is dead")
	cdctest.Eventually(t, time.Minute, func() error {
		if _, text := get(t, page+"/"); !strings.Contains(text, "The relay is down") {
			return errors.New(text)
		}
		return nil
	})
	press("k")
	demo.says("The relay starts again")
	until("the relay streams", streams(5))
	press("s")
	demo.says("Kafka is stopped")
	until("the relay is held up", func(s pipeline.Status) bool { return len(s.Blocked) > 0 || s.Role == "retrying" })
	press("s")
	demo.says("Kafka is back")
	until("the relay streams again", streams(1))
	press("d")
	demo.says("Dropped: GiftWrapped of key gift-1")
	until("no dead letter", letters(0))
	press("h")
	press("x")
	press("q")

	code, shown := demo.ends(), demo.out.String()
	if n := strings.Count(shown, "q  quit"); n != 3 {
		t.Errorf("the help was shown %d times, wanted at the start, for h and for a key without a meaning:\n%s", n, shown)
	}
	account := regexp.MustCompile(`(\d+) events committed: (\d+) published \(\d+ records came again\), 0 dead letters, 1 dropped\. \d+ of them move stock or orders: applied \d+, ` + arrivedOnce)
	m := account.FindStringSubmatch(shown)
	if code != 0 || m == nil || m[1] == m[2] || !strings.Contains(shown, "The stock is what the orders say.") {
		t.Errorf("exit code %d, %q, after:\n%s\n%s", code, m, shown, demo.err.String())
	}
	if terminal && !regexp.MustCompile(`[^-]icanon[\s\S]*[^-]echo `).MatchString(shown[strings.Index(shown, "The stock is"):]) {
		t.Errorf("the terminal is not as it was:\n%s", shown)
	}
	if left := append(demo.folders(), demo.processes()...); len(left) > 0 {
		t.Errorf("it leaves %v", left)
	}
}

func get(t *testing.T, url string) (status int, text string) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestKeysAreTheFirstLettersOfLines(t *testing.T) {
	keyboard, err := newKeyboard(t.Context(), strings.NewReader("help\n\n  k\nquit\n"), &screen{})
	if err != nil || !keyboard.given {
		t.Fatal(err)
	}
	for _, want := range "hkq" {
		if got := <-keyboard.keys; got != byte(want) {
			t.Errorf("got %q, wanted %q", got, want)
		}
	}
	nobody, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()
	if keyboard, err = newKeyboard(t.Context(), nobody, &screen{}); err != nil || keyboard.given {
		t.Errorf("there are keys without a person: %v", err)
	}
}
