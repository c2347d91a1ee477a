package cdctest_test

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/walpost/walpost/cdc/cdctest"
)

// forms returns the forms in which a program may write the word: plain, in base64 at each of three offsets, in hex,
// percent-encoded, and as bytes.
func forms() (all []string) {
	word := []byte(cdctest.Canary)
	all = append(all, cdctest.Canary)
	for offset := range 3 {
		// The first and the last letters depend on the text around the word.
		text := base64.RawStdEncoding.EncodeToString(append(make([]byte, offset), word...))
		first, whole := (offset*8+5)/6, (offset+len(word))*8/6
		all = append(all, text[first:whole])
	}
	var percent string
	for _, b := range word {
		percent += fmt.Sprintf("%%%02X", b)
	}
	return append(all, hex.EncodeToString(word), percent, strings.ToLower(percent), strings.Trim(fmt.Sprint(word), "[]"))
}

func TestCanaryIsFoundInEveryForm(t *testing.T) {
	if file, err := os.ReadFile("canary.txt"); err != nil || string(file) != strings.Join(forms(), "\n")+"\n" {
		t.Errorf("canary.txt is not\n%s", strings.Join(forms(), "\n"))
	}
	user := "walpost"
	for _, text := range []string{
		"postgres://walpost:" + cdctest.Canary + "@host", base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + cdctest.Canary)),
		base64.URLEncoding.EncodeToString([]byte("x" + cdctest.Canary + "??")), base64.StdEncoding.EncodeToString([]byte("xy" + cdctest.Canary + "zz")),
		fmt.Sprintf("%x", "a"+cdctest.Canary+"b"), fmt.Sprint([]byte("a" + cdctest.Canary)),
	} {
		if cdctest.Leak("a line\n"+text+"\nanother") != text {
			t.Errorf("not found in %s", text)
		}
	}
	if line := cdctest.Leak("kanarienvogel and others"); line != "" {
		t.Errorf("found in a text without it: %s", line)
	}
}

// TestALogWithTheCanaryFailsTheRun: also if the word arrives in two parts, as from another process.
func TestALogWithTheCanaryFailsTheRun(t *testing.T) {
	if os.Getenv("CDCTEST_LEAK") != "" {
		var log cdctest.Log
		fmt.Fprint(&log, "password is "+cdctest.Canary[:4])
		fmt.Fprintln(&log, cdctest.Canary[4:])
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", t.Name())
	cmd.Env = append(os.Environ(), "CDCTEST_LEAK=1")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "a log shows a secret: password is kan") {
		t.Errorf("it ended with %v", err)
	}
}
