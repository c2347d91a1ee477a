package debezium_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/walpost/walpost/cdc/cdctest"
	"github.com/walpost/walpost/cdc/debezium"
)

// TestReadConnectorByJavasRules reads properties by the rules of Java, also the rare ones.
func TestReadConnectorByJavasRules(t *testing.T) {
	t.Parallel()
	c, err := debezium.ReadConnector([]byte("# a comment\n! another = one\n\n  a = 1 \nb:2\nc 3\nd\ne = x \\\n   y\nf\\=g=\\u00e9\\t\\q\\\\\n" +
		"h=1\nh=2\r\ni==3\n\\#j=4\nk=\\\n\nl = a\\\\\nlast=\\"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"a": "1 ", "b": "2", "c": "3", "d": "", "e": "x y", "f=g": "é\tq\\", "h": "2", "i": "=3", "#j": "4", "k": "", "l": "a\\", "last": "",
	} {
		if got := c.Option(name); got != want || !slices.Contains(c.Options(), name) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := c.Options(); len(got) != 12 {
		t.Errorf("%d options: %q", len(got), got)
	}
	if c, err = debezium.ReadConnector([]byte("name=caf\xe9")); err != nil || c.Name != "café" {
		t.Errorf("Latin-1: %v, %v", c, err)
	}
}

// TestReadConnectorNamesWrongInput reads what is no configuration of a connector.
func TestReadConnectorNamesWrongInput(t *testing.T) {
	t.Parallel()
	const secret = cdctest.Canary
	for text, want := range map[string]string{
		"":                                 "the input is empty",
		" \n# comment only\n":              "the input has no options",
		`["` + secret + `"]`:               "the input is a JSON list",
		"{\n\"a\": \"" + secret + "\",\n}": "no valid JSON, at line 3",
		`{"a": "` + secret:                 "no valid JSON, at line 1",
		`{"a": "` + secret + `"} x`:        "more text after the JSON object",
		`{}`:                               "the JSON has no options",
		`{"config": "` + secret + `"}`:     "config: it is no JSON object",
		`{"config": {"a": {"b": "` + secret + `"}}}`: "a: the value is no text, number or boolean",
		`{"a": ["` + secret + `"]}`:                  "a: the value is no text, number or boolean",
		`{"a": 1, "a": "` + secret + `"}`:            "a: the option is there twice",
		"{\"a\": \"\xff\"}":                          "not UTF-8",
		"x=\\u12\ny=1\nz=\\uzzzz\n=3":                "line 1: after \\u come four hexadecimal digits: correct them, or write the letter itself\nline 3: after",
		"apiVersion: v1\nkind: Secret\n":             "no KafkaConnector",
		"apiVersion: v1\nkind: [" + secret:           "no valid YAML",
		"apiVersion: v1\nkind: KafkaConnector\nspec: {config: {a: [" + secret + "]}}": "a: the value is no text, number or boolean",
		strings.Repeat("{\"a\":", 5000) + "1" + strings.Repeat("}", 5000):             "a: the value is no text, number or boolean",
	} {
		_, err := debezium.ReadConnector([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		} else {
			cdctest.NoSecret(t, "the error", err.Error())
		}
	}
	if _, err := debezium.ReadConnector(make([]byte, debezium.LargestInput+1)); err == nil {
		t.Error("a giant is read")
	}
	for text, want := range map[string]string{"": "neither bootstrap.servers nor key.converter", "a=b": "neither", "x=\\u1": "line 1"} {
		if _, err := debezium.ReadWorker([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("worker %q: %v, want %q", text, err, want)
		}
	}
}

// TestReadConnectorKeepsEachForm reads the same connector in each form that Connect and its tools have.
func TestReadConnectorKeepsEachForm(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"as it is sent":       `{"name": "n", "config": {"a": "1", "b": true, "c": null}}`,
		"a bare map":          `{"name": "n", "a": 1, "b": true}`,
		"an answer":           `{"name": "n", "config": {"name": "n", "a": "1", "b": "true"}, "tasks": [{"task": 0}], "type": "source"}`,
		"an entry of a list":  `{"status": {}, "info": {"name": "n", "config": {"a": "1", "b": "true"}, "tasks": []}}`,
		"a file of Java":      "name=n\na=1\nb=true",
		"Strimzi's":           "---\napiVersion: kafka.strimzi.io/v1beta2\nkind: KafkaConnector\nmetadata: {name: n}\nspec: {config: {a: 1, b: true, c: null}}",
		"with a byte order m": "\ufeff{\"name\": \"n\", \"a\": \"1\", \"b\": \"true\"}",
	} {
		c, err := debezium.ReadConnector([]byte(text))
		if err != nil || c.Name != "n" || c.Option("a") != "1" || c.Option("b") != "true" || slices.Contains(c.Options(), "c") || c.Server {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// TestReadConnect reads a connector from a Connect that asks for a login, and names what is wrong with others.
func TestReadConnect(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("testdata", "connectors", "answer.json"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]json.RawMessage{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /connect/connectors", func(w http.ResponseWriter, r *http.Request) {
		list := map[string]any{}
		for name, info := range all {
			list[name] = map[string]json.RawMessage{"info": info}
		}
		if r.URL.Query().Get("expand") != "info" {
			t.Errorf("asked for %s", r.URL)
		}
		_ = json.NewEncoder(w).Encode(list)
	})
	mux.HandleFunc("GET /connect/connectors/{name}", func(w http.ResponseWriter, r *http.Request) {
		if info, ok := all[r.PathValue("name")]; ok {
			_, _ = w.Write(info)
			return
		}
		http.Error(w, `{"error_code":404}`, http.StatusNotFound)
	})
	mux.HandleFunc("GET /connect/connector-plugins", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `[{"class": "io.debezium.connector.mysql.MySqlConnector", "version": "3.0.0"}, {"class": "io.debezium.connector.postgresql.PostgresConnector", "version": "3.6.1.Final"}]`)
	})
	mux.HandleFunc("GET /slow/connectors", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "rebalance", http.StatusConflict)
	})
	mux.HandleFunc("GET /page/connectors", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") })
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != cdctest.Canary {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	url := func(path string) string {
		return strings.Replace(server.URL, "https://", "https://me:"+cdctest.Canary+"@", 1) + path
	}
	read := func(url, name string) (*debezium.Connector, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := debezium.ReadConnect(ctx, server.Client(), url, name)
		if err != nil {
			cdctest.NoSecret(t, "the error", err.Error())
		}
		return c, err
	}
	for _, name := range []string{"team/outbox", "a b", "50%"} { // Connect allows these
		all[name] = text
		if c, err := read(url("/connect"), name); err != nil || c.Name != "shop-outbox" {
			t.Errorf("connector %q: %v", name, err)
		}
		delete(all, name)
	}
	fails := func(want, url, name string) {
		t.Helper()
		if c, err := read(url, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v, %v, want %q", c, err, want)
		}
	}
	fails("has no connector: name the Connect that runs yours", url("/connect"), "")
	all["jdbc"] = json.RawMessage(`{"name": "jdbc", "config": {"connector.class": "JdbcSource"}}`)
	fails("no PostgreSQL connector with the outbox router, only jdbc", url("/connect"), "")
	all["shop-outbox"] = text
	for _, name := range []string{"", "shop-outbox"} {
		if c, err := read(url("/connect/"), name); err != nil || c.Name != "shop-outbox" || c.Option("slot.name") != "shop" || c.Version != "3.6.1.Final" || !slices.IsSorted(c.Options()) {
			t.Errorf("%q: %+v, %v", name, c, err)
		}
	}
	all["more"] = text
	fails("several outbox connectors: name one with --connector: more, shop-outbox", url("/connect"), "")
	fails(`has no connector "none"`, url("/connect"), "none")
	fails("refuses us (401 Unauthorized): write user and password in the URL", server.URL+"/connect", "")
	fails("answers 409 Conflict", url("/slow"), "")
	fails("something else than a list of connectors", url("/page"), "")
	fails("is no URL: write http://host:8083", "ftp://me:"+cdctest.Canary+"@host", "")
	fails("is no URL: write http://host:8083", "http://me:"+cdctest.Canary+"@[", "")
	fails("connection refused", "http://me:"+cdctest.Canary+"@127.0.0.1:1", "")
	if _, err := debezium.ReadConnect(t.Context(), &http.Client{}, url("/connect"), ""); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
}

// FuzzReadConnector reads any text: it is an error, or the options are found again in a second reading and imported or
// refused without a panic. What is printed for a connector is one comment a line, and then YAML.
func FuzzReadConnector(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "connectors", "*.*"))
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, ".golden") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(base))
	f.Add([]byte(serverBase))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := debezium.ReadConnector(text)
		if err != nil {
			if !strings.Contains(err.Error(), ": ") {
				t.Errorf("the error does not say what to do: %v", err)
			}
			return
		}
		names := c.Options()
		slices.Sort(names)
		if len(slices.Compact(names)) != len(c.Options()) {
			t.Error("an option is there twice")
		}
		i, err := debezium.Import(c, debezium.ImportOptions{Brokers: []string{"k:9092"}})
		if err != nil {
			return
		}
		var keys struct {
			Pipeline string
			Source   struct{ URL, Slot, Publication, Table string }
			Debezium map[string]string
		}
		if err := yaml.UnmarshalWithOptions(i.YAML(), &keys); err != nil || keys.Pipeline != i.Pipeline || !strings.HasPrefix(keys.Source.URL, "postgres://") {
			t.Fatalf("%v: %+v of\n%s", err, keys, i.YAML())
		}
		if slot := strings.TrimSpace(c.Option("slot.name")); slot != "" && !c.Server && keys.Source.Slot != slot {
			t.Errorf("slot %q, want %q", keys.Source.Slot, slot)
		}
		head, _, ok := strings.Cut(string(i.YAML()), "\n\npipeline: ")
		if !ok {
			t.Fatalf("no pipeline in\n%s", i.YAML())
		}
		for line := range strings.SplitSeq(head, "\n") {
			if !strings.HasPrefix(line, "#") {
				t.Errorf("a line of the head is no comment: %q", line)
			}
		}
	})
}

// TestReadConnectorIsQuick reads inputs that are made to take long.
func TestReadConnectorIsQuick(t *testing.T) {
	t.Parallel()
	var many strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&many, "option.%d=x\n", i)
	}
	if _, err := debezium.ReadConnector([]byte(many.String())); err == nil || !strings.Contains(err.Error(), "more than 5000 options") {
		t.Errorf("many options: %v", err)
	}
	begin := time.Now()
	_, err := imported(t, base+strings.Repeat("x", 1<<20)+"=y\ntransforms.outbox."+strings.Repeat("y", 1<<20)+"=x\n", debezium.ImportOptions{})
	if took := time.Since(begin); err == nil || took > 10*time.Second || len(err.Error()) > 2000 {
		t.Errorf("long names: %.200s, after %s", err, took)
	}
}
