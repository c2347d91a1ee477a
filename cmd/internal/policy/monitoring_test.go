package policy_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

const docker = "../../../docker/"

var (
	quoted     = regexp.MustCompile(`"[^"]*"`)
	matchers   = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)\{([^}]*)\}`)
	grouping   = regexp.MustCompile(`\b(?:by|without|on|ignoring) ?\(([^)]*)\)`)
	ranges     = regexp.MustCompile(`\[[^\]]*\]`)
	identifier = regexp.MustCompile(`[a-zA-Z_][a-zA-Z0-9_]*\b(?: ?\()?`)
)

// TestMonitoringAsksForWhatThereIs checks that alerts and board name only metrics and labels that the processes have,
// and that Prometheus scrapes only services that the stack has.
func TestMonitoringAsksForWhatThereIs(t *testing.T) {
	all := metrics(t)
	all.labels["up"] = nil
	all.labels["ALERTS"] = []string{"alertname", "alertstate"}
	all.labels["process_resident_memory_bytes"] = nil
	everywhere := []string{"job", "instance"} // from the scrape
	known := slices.Clone(everywhere)
	for metric, labels := range all.labels {
		known = append(known, labels...)
		if slices.ContainsFunc(all.rows, func(row string) bool {
			return strings.HasPrefix(row, "| `"+metric+"`") && strings.Contains(row, "Time from")
		}) {
			all.labels[metric+"_bucket"] = append(slices.Clone(labels), "le")
			known = append(known, "le")
		}
	}
	exprs := append(alertExprs(t), boardExprs(t)...)
	if len(exprs) < 40 {
		t.Fatalf("only %d expressions were found", len(exprs))
	}
	for _, expr := range exprs {
		rest := quoted.ReplaceAllString(expr, "")
		for _, m := range matchers.FindAllStringSubmatch(rest, -1) {
			for matcher := range strings.SplitSeq(m[2], ",") {
				if label := strings.Trim(matcher, " =!~"); !slices.Contains(append(all.labels[m[1]], everywhere...), label) {
					t.Errorf("%s: %s has no label %s", expr, m[1], label)
				}
			}
		}
		for _, m := range grouping.FindAllStringSubmatch(rest, -1) {
			for label := range strings.SplitSeq(m[1], ",") {
				if !slices.Contains(known, strings.TrimSpace(label)) {
					t.Errorf("%s: nothing has a label %s", expr, label)
				}
			}
		}
		rest = grouping.ReplaceAllString(ranges.ReplaceAllString(matchers.ReplaceAllString(rest, "$1"), ""), "(")
		for _, name := range identifier.FindAllString(rest, -1) {
			if strings.HasSuffix(name, "(") || slices.Contains([]string{"and", "or", "unless"}, name) {
				continue
			}
			if _, ok := all.labels[name]; !ok {
				t.Errorf("%s: there is no metric %s", expr, name)
			}
		}
	}
}

func alertExprs(t *testing.T) (exprs []string) {
	t.Helper()
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	read(t, docker+"prometheus/alerts.yml", &rules)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			exprs = append(exprs, r.Expr)
		}
	}
	return exprs
}

func boardExprs(t *testing.T) (exprs []string) {
	t.Helper()
	b, err := os.ReadFile(docker + "grafana/dashboards/walpost.json")
	if err != nil {
		t.Fatal(err)
	}
	type source struct{ UID string }
	var board struct {
		Panels []struct {
			Title      string
			Datasource source
			Targets    []struct {
				Datasource source
				Expr       string
			}
		}
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	var provisioned struct{ Datasources []struct{ UID string } }
	read(t, docker+"grafana/provisioning/datasources/prometheus.yml", &provisioned)
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			exprs = append(exprs, target.Expr)
			if uid := provisioned.Datasources[0].UID; p.Datasource.UID != uid || target.Datasource.UID != uid {
				t.Errorf("panel %q asks another source than %s", p.Title, uid)
			}
		}
	}
	return exprs
}

func TestPrometheusScrapesTheStack(t *testing.T) {
	var stack struct{ Services map[string]any }
	read(t, "../../../docker-compose.yml", &stack)
	var config struct {
		Jobs []struct {
			Static []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	read(t, docker+"prometheus/prometheus.yml", &config)
	targets := 0
	for _, job := range config.Jobs {
		for _, static := range job.Static {
			for _, target := range static.Targets {
				targets++
				if host, _, _ := strings.Cut(target, ":"); stack.Services[host] == nil {
					t.Errorf("Prometheus scrapes %s, and the stack has no such service", target)
				}
			}
		}
	}
	if targets < 4 {
		t.Errorf("Prometheus scrapes %d processes only", targets)
	}
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(path))
	if err == nil {
		err = yaml.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
