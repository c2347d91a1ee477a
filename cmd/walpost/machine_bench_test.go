package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cpu is time of a processor, in user and in system mode. Linux counts the sum exactly and divides it by samples, 100 to 1,000 a
// second, so that the parts of a few milliseconds say nothing.
type cpu struct{ user, system time.Duration }

func (c cpu) total() time.Duration { return c.user + c.system }

// stat is what /proc/<pid>/stat says.
type stat struct {
	parent        int
	own, children cpu // of children: those that have ended and were waited for
}

const jiffy = 10 * time.Millisecond // the unit in /proc

// parseStat reads a line of /proc/<pid>/stat. Its second field is the program's name, in parentheses; it may hold spaces and
// parentheses.
func parseStat(line string) (p stat, err error) {
	end := strings.LastIndexByte(line, ')')
	fields := strings.Fields(line[end+1:])
	if end < 0 || len(fields) < 15 {
		return p, fmt.Errorf("no line of /proc/<pid>/stat: %q", line)
	}
	numbers := make([]int, 15)
	for _, i := range []int{1, 11, 12, 13, 14} {
		n, wrong := strconv.Atoi(fields[i])
		numbers[i], err = n, errors.Join(err, wrong)
	}
	time := func(i int) time.Duration { return time.Duration(numbers[i]) * jiffy }
	return stat{numbers[1], cpu{time(11), time(12)}, cpu{time(13), time(14)}}, err
}

func statOf(pid int) (stat, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(line))
}

// cpuOf is what a process has used so far; nothing is known of one that has gone.
func cpuOf(pid int) (used cpu, known bool) {
	p, err := statOf(pid)
	return p.own, err == nil
}

// parseIdle reads /proc/stat: how many CPUs there are, and how long they have had nothing to do, all together. A kernel that
// stops an idle CPU's clock counts this time exactly, while it takes samples of the busy time.
func parseIdle(text string) (cpus int, idle time.Duration) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 6 || !strings.HasPrefix(fields[0], "cpu") {
			continue
		}
		if fields[0] != "cpu" {
			cpus++
			continue
		}
		for _, f := range fields[4:6] { // idle, and idle with a disk at work
			n, _ := strconv.Atoi(f)
			idle += time.Duration(n) * jiffy
		}
	}
	return cpus, idle
}

// listener is the process that listens on an address's port, 0 where that is none of this machine.
func listener(addr string) int {
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	sockets := map[string]bool{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, _ := os.ReadFile(file)
		for line := range strings.Lines(string(table)) {
			fields := strings.Fields(line)
			const listen = "0A"
			if len(fields) > 9 && fields[3] == listen && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", n)) {
				sockets["socket:["+fields[9]+"]"] = true
			}
		}
	}
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil && sockets[to] {
			pid, _ := strconv.Atoi(strings.Split(file, "/")[2])
			return pid
		}
	}
	return 0
}

// machine knows the processes that a benchmark is about. One that it does not know is 0, and has used nothing.
type machine struct{ postmaster, broker, relay, walsender int }

func (s *stage) machine() machine {
	s.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(s.query("SELECT pg_read_file('postmaster.pid')"), "\n", 2)[0]))
	if err != nil {
		s.t.Fatal(err)
	}
	return machine{postmaster: pid, broker: listener(s.brokers[0])}
}

// walsender is the process that serves the slot, 0 if none does.
func (s *stage) walsender() int {
	s.t.Helper()
	return int(s.number("SELECT coalesce(max(active_pid), 0)::text FROM pg_replication_slots WHERE slot_name = $1", s.env["WALPOST_SOURCE_SLOT"]))
}

// postgres is what the server's processes have used, those that have ended too.
func (m machine) postgres() time.Duration {
	for {
		server, _ := statOf(m.postmaster)
		used := server.own.total() + server.children.total()
		files, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, file := range files {
			line, _ := os.ReadFile(file)
			if p, err := parseStat(string(line)); err == nil && p.parent == m.postmaster {
				used += p.own.total()
			}
		}
		if again, _ := statOf(m.postmaster); again.children == server.children {
			return used
		} // else one has ended, and was counted twice or not at all
	}
}

// shares is what has been used of the CPUs until a moment, by everybody and by those a benchmark is about.
type shares struct {
	at        time.Time
	cpus      int
	everybody time.Duration
	postgres  time.Duration // walsender included
	walsender time.Duration
	broker    time.Duration
	relay     time.Duration
	itself    time.Duration
}

var epoch = time.Now()

func (m machine) shares() shares {
	of := func(pid int) time.Duration {
		used, _ := cpuOf(pid)
		return used.total()
	}
	text, _ := os.ReadFile("/proc/stat")
	cpus, idle := parseIdle(string(text))
	s := shares{at: time.Now(), cpus: cpus, postgres: m.postgres(), walsender: of(m.walsender), broker: of(m.broker), relay: of(m.relay)}
	s.everybody = time.Duration(cpus)*s.at.Sub(epoch) - idle
	var own syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &own)
	s.itself = time.Duration(own.Utime.Nano() + own.Stime.Nano())
	return s
}

// others is the part of the machine that was used since before by none of those, nor by a reader that has ended: by other processes,
// by interrupts while nothing ran, and by other virtual machines.
func (s shares) others(before shares, reader time.Duration) float64 {
	known := func(s shares) time.Duration { return s.postgres + s.broker + s.relay + s.itself }
	used := s.everybody - before.everybody - (known(s) - known(before)) - reader
	return max(0, used.Seconds()/s.at.Sub(before.at).Seconds()/float64(s.cpus))
}
