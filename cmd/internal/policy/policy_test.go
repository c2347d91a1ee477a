package policy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
)

const module = "github.com/walpost/walpost/"

type pkg struct {
	ImportPath, Doc, Dir string
	Imports, Deps        []string
}

// packages returns all packages of the module, by import path without the module.
func packages(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Doc,Dir,Imports,Deps", module+"...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string]pkg{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module)] = p
	}
	if len(all) < 10 {
		t.Fatalf("only %d packages found", len(all))
	}
	return all
}

// TestWhoMayImportWhom checks that imports follow the direction of the data: cmd → adapters → cdc. The services know
// neither each other nor the engine.
func TestWhoMayImportWhom(t *testing.T) {
	all := packages(t)
	kafka := "github.com/twmb/franz-go"
	for who, never := range map[string][]string{
		"cdc":              {module, kafka, "net/http", "github.com/goccy", "github.com/jackc/pgx"},
		"cdc/config":       {module, kafka, "net/http"},
		"cdc/identity":     {module, "github.com/aws"},
		"cdc/postgres":     {module + "cdc/kafka", module + "cdc/route", module + "cdc/pipeline", kafka},
		"cdc/kafka":        {module + "cdc/postgres", module + "cdc/route", module + "cdc/pipeline"},
		"cdc/route":        {module + "cdc/postgres", module + "cdc/kafka", module + "cdc/pipeline", kafka},
		"cdc/polling":      {module + "cdc/kafka", module + "cdc/route", module + "cdc/pipeline", kafka},
		"cdc/pipeline":     {module + "cdc/outbox", module + "cdc/inbox", module + "sql"},
		"cdc/outbox":       {module, kafka},
		"cdc/inbox":        {module},
		"cdc/httpjson":     {module, kafka},
		"cdc/header":       {module, kafka},
		"cdc/devenv":       {"testing"},
		"orders":           {module + "inventory", kafka},
		"inventory":        {module + "orders"},
		"orders/saga":      {module + "inventory"},
		"cmd/orders":       {module + "inventory", kafka},
		"cmd/inventory":    {module + "orders"},
		"sql":              {module, kafka},
		"cmd/internal/app": {module, kafka},
	} {
		p, ok := all[who]
		if !ok {
			t.Errorf("there is no package %s: has it moved?", who)
			continue
		}
		for _, forbidden := range never {
			for _, imported := range p.Imports {
				if imported == module+"cdc/internal/failpoint" || imported == module+"cdc/inbox/schema" || imported == module+"cdc/pglimit" || imported == module+"cdc/header" || imported == module+"cdc/identity" || imported == module+"cdc/misspelt" || imported == module+"cdc/plain" || imported == module+"cdc/version" {
					continue // failpoints, which released programs do not have; a text; packages that import nothing of ours
				}
				if imported == forbidden || strings.HasPrefix(imported, strings.TrimSuffix(forbidden, "/")+"/") {
					t.Errorf("%s imports %s", who, imported)
				}
			}
		}
	}
	for _, service := range []string{"orders", "orders/saga", "inventory"} {
		for _, engine := range []string{"cdc", "cdc/postgres", "cdc/kafka", "cdc/route", "cdc/pipeline"} {
			if slices.Contains(all[service].Deps, module+engine) {
				t.Errorf("%s reaches the engine's %s", service, engine)
			}
		}
	}
}

// TestWhoEmbedsARelay checks that of the services only orders embeds a relay, in its command. No package below a
// command knows the whole relay; the page shows what a relay returns.
func TestWhoEmbedsARelay(t *testing.T) {
	var who []string
	for path, p := range packages(t) {
		if slices.Contains(p.Imports, module+"cdc/pipeline") {
			who = append(who, path)
		}
	}
	slices.Sort(who)
	if want := []string{"cdc/page", "cmd/demo", "cmd/orders", "cmd/walpost"}; !slices.Equal(who, want) {
		t.Errorf("a relay is embedded by %v, and may be by %v", who, want)
	}
}

// TestProductionBinariesCarryNoTestCode checks that the programs that people deploy hold no code that starts servers
// for tests.
func TestProductionBinariesCarryNoTestCode(t *testing.T) {
	all := packages(t)
	for _, binary := range []string{"cmd/walpost", "cmd/orders", "cmd/inventory"} {
		if len(all[binary].Deps) == 0 {
			t.Fatalf("no dependencies of %s were listed", binary)
		}
		for _, dep := range all[binary].Deps {
			if dep == "testing" || strings.HasPrefix(dep, module+"cdc/devenv") || strings.HasPrefix(dep, module+"cdc/cdctest") ||
				strings.Contains(dep, "kfake") || strings.Contains(dep, "embedded-postgres") || strings.Contains(dep, "goleak") {
				t.Errorf("%s carries %s", binary, dep)
			}
		}
	}
	for _, library := range []string{"cdc/pipeline", "cdc/inbox", "cdc/outbox", "cdc/identity"} {
		if slices.ContainsFunc(all[library].Deps, func(dep string) bool { return strings.HasPrefix(dep, "github.com/aws/") }) {
			t.Errorf("%s carries the SDK of AWS: only cdc/identity/aws may", library)
		}
	}
	for _, dep := range all["orders"].Deps {
		if strings.HasPrefix(dep, "github.com/twmb/") || dep == module+"cdc/inbox" {
			t.Errorf("orders knows Kafka: %s", dep)
		}
	}
}

// TestProductionBinariesHaveNoFailpoints looks for the names of failpoints in each program, and finds them only in one
// built with their tag.
func TestProductionBinariesHaveNoFailpoints(t *testing.T) {
	cdctest.Long(t, "builds every binary")
	for _, c := range []struct {
		args []string
		want bool
	}{
		{[]string{module + "cmd/walpost"}, false},
		{[]string{module + "cmd/orders"}, false},
		{[]string{module + "cmd/inventory"}, false},
		{[]string{"-tags", "failpoints", module + "cmd/walpost"}, true},
	} {
		path := filepath.Join(t.TempDir(), "binary")
		if out, err := exec.Command("go", append([]string{"build", "-o", path}, c.args...)...).CombinedOutput(); err != nil {
			t.Fatalf("go build %v: %v\n%s", c.args, err, out)
		}
		binary, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"WALPOST_FAILPOINT", "after_commit_before_ack", "mid_produce"} {
			if bytes.Contains(binary, []byte(name)) != c.want {
				t.Errorf("go build %v: the binary holds %q: %t, want %t", c.args, name, !c.want, c.want)
			}
		}
	}
}

func TestEveryPackageSaysItsOneIdea(t *testing.T) {
	for path, p := range packages(t) {
		if !strings.HasPrefix(p.Doc, "Package ") && !strings.HasPrefix(p.Doc, "Command ") {
			t.Errorf("%s has no doc comment that begins with Package or Command: %q", path, p.Doc)
		}
	}
}

// TestTopLevel checks that the top level holds the folders of the project, and the files that tools expect there.
func TestTopLevel(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	out, err := exec.Command("git", "-C", root, "ls-files").Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	allowed := []string{"cmd", "cdc", "orders", "inventory", "sql", "docker", "docker-compose.yml", "go.mod", "go.sum", "README.md", "LICENSE"}
	for file := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		top, _, _ := strings.Cut(file, "/")
		if _, err := os.Stat(filepath.Join(root, file)); err == nil && !strings.HasPrefix(top, ".") && !slices.Contains(allowed, top) {
			t.Errorf("%s does not belong on the top level", top)
		}
	}
}
