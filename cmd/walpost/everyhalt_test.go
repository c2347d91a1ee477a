package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// elsewhere are halts that TestPrintedCommandsEndEachHalt does not provoke, each with the reason, or the test that does
// it.
var elsewhere = map[string]string{
	"no later row is published until you decide":                                  "a row of a type that is not listed, and others there: the words are the row's",
	"kafka does not show topic":                                                   "fault 14",
	"this Kafka gives no producer ids":                                            "TestKafkaThatHasLess",
	"this Kafka has no transactions":                                              "TestKafkaThatHasLess",
	"dead letters are unresolved, and poison.hold_key":                            "100,000 dead letters would be needed: not provoked",
	"the table cannot be polled like this, and nothing is lost | fix it":          "TestPollingUnderRowLevelSecurity",
	"the table cannot be polled like this, and nothing is lost | , and the relay": "TestPollingBadInput",
	"a relay streams %s from the WAL":                                             "TestFromPollingToTheWAL",
	"the stream has a row of relation %d before its description":                  "no server does that: the decoder's tests",
	"the role of this connection lacks the right":                                 "PostgreSQL names the right that is missing: what to run depends on it",
	"every later row waits in the slot; nothing is lost":                          "a row that PostgreSQL cannot decode, from 15 on",
	"says that `walpost take-over` did not finish":                                "TestTakeOverCuts",
	"may never have been streamed, or not whole":                                  "changed and changed back, and others there",
}

// TestEveryHaltIsProvoked reads the source and finds each place that makes a halt, by its words, in the tests that
// provoke halts.
func TestEveryHaltIsProvoked(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	err := filepath.WalkDir("../../cdc", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok || !isHalt(lit.Type) || len(lit.Elts) == 0 {
				return true
			}
			words := literals(lit)
			if words == "" {
				return true // it is made of another halt, or of its caller's words
			}
			known := ""
			for _, c := range provokedHalts {
				if strings.Contains(words, c.found) {
					known = c.found
				}
			}
			for text := range elsewhere {
				if strings.Contains(words, text) {
					known = text
					used[text] = true
				}
			}
			if known == "" {
				t.Errorf("%s: nothing provokes this halt: %s", fset.Position(lit.Pos()), words)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for text := range elsewhere {
		if !used[text] {
			t.Errorf("no halt says %q any more", text)
		}
	}
}

func isHalt(typ ast.Expr) bool {
	switch typ := typ.(type) {
	case *ast.Ident:
		return typ.Name == "HaltError"
	case *ast.SelectorExpr:
		return typ.Sel.Name == "HaltError"
	}
	return false
}

// literals returns all texts in an expression, in their order.
func literals(n ast.Node) (text string) {
	ast.Inspect(n, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				text += s + " | "
			}
		}
		return true
	})
	return text
}
