package policy_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const contributing = ".github/CONTRIBUTING.md"

var (
	variable = regexp.MustCompile(`WALPOST_[A-Z_]+`)
	// asked finds the variables that Go code reads, by their names or by constants named for it.
	asked    = regexp.MustCompile(`(?:(?:Getenv|LookupEnv)\(|Variable = )"(WALPOST_[A-Z_]+)"`)
	testName = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9]*`)
)

// tracked returns the files of the repository that exist, by their paths.
func tracked(t *testing.T, patterns ...string) map[string][]byte {
	t.Helper()
	root := filepath.Join("..", "..", "..")
	out, err := exec.Command("git", append([]string{"-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"}, patterns...)...).Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	files := map[string][]byte{}
	for name := range strings.SplitSeq(strings.Trim(string(out), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		files[name] = text
	}
	if len(files) == 0 {
		t.Fatalf("no file matches %v", patterns)
	}
	return files
}

// TestContributingNamesEveryVariable compares the table of CONTRIBUTING.md with the variables that tests, their harness
// and .ci read.
func TestContributingNamesEveryVariable(t *testing.T) {
	read := map[string]string{} // by variable, a file
	for file, text := range tracked(t, "*_test.go", "cdc/cdctest/*.go", "cdc/devenv/*.go", "cdc/internal/failpoint/*.go") {
		for _, m := range asked.FindAllSubmatch(text, -1) {
			read[string(m[1])] = file
		}
	}
	for file, text := range tracked(t, ".ci/*") {
		for _, name := range variable.FindAllString(string(text), -1) {
			read[name] = file
		}
	}
	if len(read) < 15 {
		t.Errorf("only %d variables were found", len(read))
	}
	var named []string
	for line := range bytes.Lines(tracked(t, contributing)[contributing]) {
		if first, _, row := bytes.Cut(bytes.TrimPrefix(line, []byte("|")), []byte("|")); row {
			named = append(named, variable.FindAllString(string(first), -1)...)
		}
	}
	for name, file := range read {
		if !slices.Contains(named, name) {
			t.Errorf("%s reads %s, and %s does not name it", file, name, contributing)
		}
	}
	for _, name := range named {
		if read[name] == "" {
			t.Errorf("%s names %s, and nothing reads it", contributing, name)
		}
	}
}

// TestPagesNameTestsThatExist looks up each test that the decision records, WHERE-IT-RUNS.md, identity's page and
// CONTRIBUTING.md name.
func TestPagesNameTestsThatExist(t *testing.T) {
	exist := map[string]bool{}
	for _, text := range tracked(t, "*_test.go") {
		for _, name := range regexp.MustCompile(`(?m)^func (\w+)\(`).FindAllSubmatch(text, -1) {
			exist[string(name[1])] = true
		}
	}
	pages := tracked(t, "cdc/adr/*.md", "cdc/WHERE-IT-RUNS.md", "cdc/identity/README.md", contributing)
	if len(pages) < 10 {
		t.Errorf("only %d pages were found", len(pages))
	}
	for page, text := range pages {
		for _, name := range testName.FindAllString(string(text), -1) {
			if !exist[name] {
				t.Errorf("%s names %s, and there is no such test", page, name)
			}
		}
	}
}
