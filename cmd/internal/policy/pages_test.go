package policy_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const contributing = ".github/CONTRIBUTING.md"

var (
	variable = regexp.MustCompile(`WALPOST_[A-Z_]+`)
	// asked finds the variables that Go code asks for, by their names or by constants named for it.
	asked    = regexp.MustCompile(`(?:(?:Getenv|LookupEnv)\(|Variable = )"(WALPOST_[A-Z_]+)"`)
	testName = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z][A-Za-z0-9]*`)
)

// tracked returns the files of the repository, by their paths, as far as they are there.
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

// longest holds the most lines that a page may have: each is for one reader.
var longest = map[string]int{
	"README.md": 230, "docker/README.md": 260, "cdc/README.md": 140, "cdc/OPERATING.md": 280,
	"cdc/polling/README.md": 150, "cdc/page/README.md": 150, "cdc/inbox/README.md": 150, "orders/README.md": 150, "inventory/README.md": 150, "sql/README.md": 150,
	"cdc/debezium/README.md": 260,
}

func TestPagesAreShort(t *testing.T) {
	pages := tracked(t, "*.md")
	for page, most := range longest {
		text, ok := pages[page]
		if lines := bytes.Count(text, []byte("\n")); !ok {
			t.Errorf("there is no page %s", page)
		} else if lines > most {
			t.Errorf("%s has %d lines, and may have %d: move what is for another reader to that reader's page", page, lines, most)
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile("(?m)^#{1,6} +(.+?) *$")
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	linked  = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// anchors returns the anchors that GitHub gives the headings of a page.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(block.ReplaceAllString(text, ""), -1) {
		slug := strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(linked.ReplaceAllString(m[1], "$1")), ""), " ", "-")
		name := slug
		for n := 1; all[name]; n++ {
			name = fmt.Sprintf("%s-%d", slug, n)
		}
		all[name] = true
	}
	return all
}

// TestLinksOfPagesResolve follows each link from a page to a file, a folder or a heading of the repository.
func TestLinksOfPagesResolve(t *testing.T) {
	files, folders := tree(t)
	pages, followed := tracked(t, "*.md"), 0
	for page, text := range pages {
		sentences := span.ReplaceAllString(block.ReplaceAllString(string(text), ""), "")
		for _, m := range link.FindAllStringSubmatch(sentences, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			followed++
			file, anchor, _ := strings.Cut(m[1], "#")
			target := path.Join(path.Dir(page), file)
			if file == "" {
				target = page
			}
			if !files[target] && !folders[target] {
				t.Errorf("%s links to %s, and there is no %s", page, m[1], target)
			} else if to, ok := pages[target]; anchor != "" && (!ok || !anchors(string(to))[anchor]) {
				t.Errorf("%s links to %s, and %s has no such heading", page, m[1], target)
			}
		}
	}
	if followed < 50 {
		t.Errorf("only %d links were found", followed)
	}
}

func TestAnchorsAreGitHubs(t *testing.T) {
	page := "# `adopt` accepts, and more!\n## A/B, 2 [x](y.md) _z_\n```sh\n# no heading\n```\n## Same\n## Same\n"
	have := slices.Sorted(maps.Keys(anchors(page)))
	if want := []string{"ab-2-x-_z_", "adopt-accepts-and-more", "same", "same-1"}; !slices.Equal(have, want) {
		t.Errorf("anchors %q, want %q", have, want)
	}
}

// changelog may name what is gone.
const changelog = ".github/CHANGELOG.md"

// tree returns the files of the repository and their folders.
func tree(t *testing.T) (files, folders map[string]bool) {
	t.Helper()
	files, folders = map[string]bool{}, map[string]bool{}
	for file := range tracked(t) {
		files[file] = true
		for dir := path.Dir(file); !folders[dir]; dir = path.Dir(dir) {
			folders[dir] = true
		}
	}
	return files, folders
}

// extensions end the names of files that a page may name without their folder.
var extensions = []string{".go", ".md", ".sql", ".yml", ".yaml", ".mod", ".sum", ".json"}

// TestPathsOnPagesExist looks up the files and folders of the repository that pages name in backticks, from its top or
// from the page.
func TestPathsOnPagesExist(t *testing.T) {
	files, folders := tree(t)
	var tops, goFiles []string
	for file := range files {
		if top, _, inside := strings.Cut(file, "/"); inside || slices.Contains(extensions, path.Ext(file)) {
			tops = append(tops, top)
		}
		if path.Ext(file) == ".go" {
			goFiles = append(goFiles, path.Base(file))
		}
	}
	seen := 0
	for page, text := range tracked(t, "*.md", ":!"+changelog) {
		for _, m := range span.FindAllStringSubmatch(block.ReplaceAllString(string(text), ""), -1) {
			for word := range strings.FieldsSeq(m[1]) {
				name := strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(strings.Trim(word, "'\"(),"), "./"), "..."), "/")
				top, _, inside := strings.Cut(name, "/")
				switch {
				case strings.ContainsAny(name, "…*<") || strings.Contains(name, "NN"): // it stands for a name
				case regexp.MustCompile(`^[a-z_]+\.go$`).MatchString(name):
					if seen++; !slices.Contains(goFiles, name) {
						t.Errorf("%s names %s, and there is no such file", page, name)
					}
				case !slices.Contains(tops, top) || !inside && !slices.Contains(extensions, path.Ext(name)):
				default:
					near := path.Join(path.Dir(page), name)
					if seen++; !files[name] && !folders[name] && !files[near] && !folders[near] {
						t.Errorf("%s names %s, and there is no such file or folder", page, name)
					}
				}
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d paths were found", seen)
	}
}

var (
	goTest   = regexp.MustCompile("go test ([^`\n|]+)")
	chosen   = regexp.MustCompile(`-(?:run|bench)[ =]'?([^'\s]+)`)
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)\w*)\(`)
)

// TestPagesNameTestsThatExist looks up each test that a page names, and each that a `go test … -run` or `-bench` of a
// page runs.
func TestPagesNameTestsThatExist(t *testing.T) {
	byFolder, exist := map[string][]string{}, map[string]bool{}
	for file, text := range tracked(t, "*_test.go") {
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			byFolder[path.Dir(file)] = append(byFolder[path.Dir(file)], string(m[1]))
			exist[string(m[1])] = true
		}
	}
	table, commands := string(tracked(t, "cdc/FAULTS.md")["cdc/FAULTS.md"]), 0
	for page, text := range tracked(t, "*.md") {
		for _, name := range testName.FindAllString(string(text), -1) {
			if !exist[name] {
				t.Errorf("%s names %s, and there is no such test", page, name)
			}
		}
		for _, m := range goTest.FindAllStringSubmatch(string(text), -1) {
			commands++
			var among []string
			for word := range strings.FieldsSeq(m[1]) {
				if folder, ok := strings.CutPrefix(word, "./"); ok {
					for in, names := range byFolder {
						if below, all := strings.CutSuffix(folder, "..."); in == folder || all && strings.HasPrefix(in+"/", below) {
							among = append(among, names...)
						}
					}
				}
			}
			for _, c := range chosen.FindAllStringSubmatch(m[1], -1) {
				first, sub, _ := strings.Cut(c[1], "/")
				pattern, err := regexp.Compile(first)
				if c[1] != "^$" && (err != nil || !slices.ContainsFunc(among, pattern.MatchString)) {
					t.Errorf("%s: go test %s: no test of these folders matches %s", page, m[1], c[1])
				}
				if sub != "" && first == "TestFaults" && !strings.Contains(table, "TestFaults/"+sub+"'") {
					t.Errorf("%s: go test %s: cdc/FAULTS.md has no line %s", page, m[1], sub)
				}
			}
		}
	}
	if commands < 80 {
		t.Errorf("only %d commands were found", commands)
	}
}

// TestOperatorsPageHasEveryAlert compares the alerts of the page with those of Prometheus.
func TestOperatorsPageHasEveryAlert(t *testing.T) {
	const rules, page = "docker/prometheus/alerts.yml", "cdc/OPERATING.md"
	_, section, _ := strings.Cut(string(tracked(t, page)[page]), "\n## Alerts\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var named []string
	for line := range strings.Lines(section) {
		if first, _, row := strings.Cut(strings.TrimPrefix(line, "| "), " |"); row {
			named = append(named, strings.Split(first, ", ")...)
		}
	}
	var alerts []string
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllSubmatch(tracked(t, rules)[rules], -1) {
		if alerts = append(alerts, string(m[1])); !slices.Contains(named, string(m[1])) {
			t.Errorf("%s has no line for %s", page, m[1])
		}
	}
	for _, name := range named {
		if name != "alert" && !strings.HasPrefix(name, "|") && !slices.Contains(alerts, name) {
			t.Errorf("%s names the alert %s, and %s has no such alert", page, name, rules)
		}
	}
}
