package policy_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/version"
)

// dialect finds words and phrases that a reader whose first language is not English stops at. CONTRIBUTING, "Plain English", says what to
// write instead.
var dialect = regexp.MustCompile(`(?i)\b(anew|of (its|their|our|your|his) own|so many|tells? of|told of|mend(s|ed|ing)?|whoever|whatever|` +
	`what is to be|shall|(takes?|took|taken) down|(is|are|was|were) (asked|said)|(comes?|came|becomes?|became) of|lets? go of|by and by|` +
	`in (its|their) turn|of late|not (ours|theirs)|(has|have|had) heard of)\b`)

var (
	migration    = regexp.MustCompile(`^sql/\w+/\d+_`)
	sqlStatement = regexp.MustCompile(`(?m)^\s*[^-\s].*$`)
)

// proseFiles returns the files that hold sentences of ours, without recordings.
func proseFiles(t *testing.T) map[string][]byte {
	files := tracked(t, "*.go", "*.md", "*.sql", "*.yml", "*.yaml", "*.html", ".ci/*", "docker/*")
	for name := range files {
		switch {
		case strings.Contains(name, "testdata/"), name == contributing, name == "cmd/internal/policy/words_test.go":
			delete(files, name)
		case migration.MatchString(name): // its statements were run and stay, with the comments that they put on columns
			files[name] = sqlStatement.ReplaceAll(files[name], nil)
		}
	}
	return files
}

// TestPlainEnglish reads comments, strings and pages.
func TestPlainEnglish(t *testing.T) {
	t.Parallel()
	for name, text := range proseFiles(t) {
		n := 0
		for line := range strings.Lines(string(text)) {
			n++
			if word := dialect.FindString(line); word != "" {
				t.Errorf("%s:%d: %q is no plain English: %s", name, n, word, strings.TrimSpace(line))
			}
		}
	}
	for _, sentence := range []string{"record tells of it", "a slot of its own", "Whoever reads", "it is asked anew"} {
		if !dialect.MatchString(sentence) {
			t.Errorf("%q was not found", sentence)
		}
	}
}

// obvious are methods that an interface of the standard library, or kong, explains.
var obvious = strings.Fields(`Error Unwrap Is As String GoString Format MarshalJSON UnmarshalJSON MarshalYAML UnmarshalYAML MarshalText UnmarshalText
	Read Write Close Scan Value Len Less Swap ServeHTTP Describe Collect RoundTrip Run MarshalZerologObject`)

// goFiles parses the Go files of the repository and calls visit for each.
func goFiles(t *testing.T, visit func(name string, fset *token.FileSet, file *ast.File)) {
	t.Helper()
	for name, text := range tracked(t, "*.go") {
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		visit(name, fset, file)
	}
}

// TestCommentsSayWhatAFunctionDoes checks that a function's comment begins with its name and a verb of action, and that each exported name
// of a package has a comment.
func TestCommentsSayWhatAFunctionDoes(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, name := range obvious {
		known[name] = true
	}
	functions := 0
	goFiles(t, func(name string, fset *token.FileSet, file *ast.File) {
		test := strings.HasSuffix(name, "_test.go")
		bad := func(at ast.Node, format string, args ...any) {
			t.Helper()
			t.Errorf("%s: "+format, append([]any{fset.Position(at.Pos())}, args...)...)
		}
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				says := strings.Fields(decl.Doc.Text())
				switch {
				case test && regexp.MustCompile(`^(Test|Fuzz|Benchmark|Example)`).MatchString(decl.Name.Name):
				case len(says) < 2:
					if decl.Name.IsExported() && !test && !known[decl.Name.Name] {
						bad(decl, "%s has no comment", decl.Name.Name)
					}
				case says[0] != decl.Name.Name:
					bad(decl, "the comment of %s begins with %q", decl.Name.Name, says[0])
				case weak[says[1]] && !(len(says) > 2 && says[2] == "called"):
					bad(decl, "a function does something: %s", strings.Join(says[:min(10, len(says))], " "))
				default:
					functions++
				}
			case *ast.GenDecl:
				if test || decl.Doc != nil {
					continue
				}
				for _, spec := range decl.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						if spec.Name.IsExported() && spec.Doc == nil && spec.Comment == nil {
							bad(spec, "%s has no comment", spec.Name.Name)
						}
					case *ast.ValueSpec:
						if spec.Names[0].IsExported() && spec.Doc == nil && spec.Comment == nil {
							bad(spec, "%s has no comment", spec.Names[0].Name)
						}
					}
				}
			}
		}
	})
	if functions < 1000 {
		t.Errorf("only %d comments of functions were found", functions)
	}
}

// weak are second words of a comment that say what a function is, and not what it does.
var weak = map[string]bool{
	"is": true, "are": true, "was": true, "says": true, "tells": true, "has": true, "have": true, "what": true, "the": true, "a": true, "an": true, "and": true,
}

// TestErrorTypesEndInError looks at each type with a method Error() string.
func TestErrorTypesEndInError(t *testing.T) {
	t.Parallel()
	found := 0
	goFiles(t, func(name string, fset *token.FileSet, file *ast.File) {
		for _, decl := range file.Decls {
			method, ok := decl.(*ast.FuncDecl)
			if !ok || method.Recv == nil || method.Name.Name != "Error" || len(method.Type.Params.List) > 0 {
				continue
			}
			receiver := method.Recv.List[0].Type
			if pointer, ok := receiver.(*ast.StarExpr); ok {
				receiver = pointer.X
			}
			found++
			if id, ok := receiver.(*ast.Ident); ok && !strings.HasSuffix(id.Name, "Error") && !strings.HasSuffix(name, "_test.go") {
				t.Errorf("%s: %s is a type of errors: its name ends in Error", fset.Position(method.Pos()), id.Name)
			}
		}
	})
	if found < 5 {
		t.Errorf("only %d types of errors were found", found)
	}
}

// TestChangelogBeginsWithTheVersion compares it with what --version prints.
func TestChangelogBeginsWithTheVersion(t *testing.T) {
	t.Parallel()
	text := string(tracked(t, ".github/CHANGELOG.md")[".github/CHANGELOG.md"])
	_, section, _ := strings.Cut(text, "\n## ")
	first, _, _ := strings.Cut(section, "\n")
	if number, _, _ := strings.Cut(first, ","); number != version.Number {
		t.Errorf("the changelog begins with %q, and walpost --version prints %s", first, version.Number)
	}
}
