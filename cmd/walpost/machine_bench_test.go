package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// cpu is time of a processor, in user and in system mode. Linux counts the sum exactly and divides it by samples, 100
// to 1,000 a second, so that the parts of a few milliseconds say nothing.
type cpu struct{ user, system time.Duration }

func (c cpu) total() time.Duration { return c.user + c.system }

// stat is what /proc/<pid>/stat says.
type stat struct {
	parent        int
	own, children cpu // of children: those that have ended and were waited for
}

const jiffy = 10 * time.Millisecond // the unit in /proc

// parseStat reads a line of /proc/<pid>/stat. Its second field is the program's name, in parentheses; it may hold
// spaces and parentheses.
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

// cpuOf returns the CPU time of a process so far. known is false if the process is gone.
func cpuOf(pid int) (used cpu, known bool) {
	p, err := statOf(pid)
	return p.own, err == nil
}

// parseSteal reads /proc/stat: how many CPUs there are, and for how long other virtual machines had them, all together.
func parseSteal(text string) (cpus int, steal time.Duration) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 9 || !strings.HasPrefix(fields[0], "cpu"):
		case fields[0] == "cpu":
			n, _ := strconv.Atoi(fields[8])
			steal = time.Duration(n) * jiffy
		default:
			cpus++
		}
	}
	return cpus, steal
}

// listener returns the process that listens on an address's port, 0 if it is not on this machine.
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

func (s *testbed) processes() machine {
	s.T.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(s.Query("SELECT pg_read_file('postmaster.pid')"), "\n", 2)[0]))
	if err != nil {
		s.T.Fatal(err)
	}
	return machine{postmaster: pid, broker: listener(s.Brokers[0])}
}

// walsenderPID returns the process that serves the relay's slot, 0 if there is none.
func (s *testbed) walsenderPID() int {
	s.T.Helper()
	conn := s.Connect()
	defer func() { _ = conn.Close(context.Background()) }()
	return senderOf(conn, s.Slot())
}

func senderOf(conn *pgx.Conn, slot string) (pid int) {
	_ = conn.QueryRow(context.Background(), "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&pid)
	return pid
}

// shares is what has been used of the CPUs until a moment, by all processes and by those a benchmark is about.
type shares struct {
	at        time.Time
	cpus      int
	everybody time.Duration // other virtual machines too
	postgres  time.Duration // walsender included
	walsender time.Duration
	broker    time.Duration
	relay     time.Duration
	itself    time.Duration // and children that have ended
}

// shares adds up what all processes have used, and what of it was used by children that have ended.
func (m machine) shares() (s shares) {
	for {
		text, _ := os.ReadFile("/proc/stat")
		s = shares{at: time.Now()}
		s.cpus, s.everybody = parseSteal(string(text))
		server, _ := statOf(m.postmaster)
		files, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, file := range files {
			pid, _ := strconv.Atoi(strings.Split(file, "/")[2])
			p, err := statOf(pid)
			if err != nil {
				continue // it has ended
			}
			own, all := p.own.total(), p.own.total()+p.children.total()
			s.everybody += all
			switch {
			case pid == m.postmaster:
				s.postgres += all
			case p.parent == m.postmaster:
				s.postgres += own
			case pid == m.broker:
				s.broker = own
			case pid == m.relay:
				s.relay = own
			case pid == os.Getpid():
				s.itself = all
			}
			if pid == m.walsender {
				s.walsender = own
			}
		}
		if again, _ := statOf(m.postmaster); again.children == server.children {
			return s
		} // else a child has ended meanwhile, and was counted twice or not at all
	}
}

// others returns the part of the machine that other processes have used since before. It leaves out the kernel's time
// without a process, most of which is spent to wake those processes.
func (s shares) others(before shares) float64 {
	known := func(s shares) time.Duration { return s.postgres + s.broker + s.relay + s.itself }
	used := s.everybody - before.everybody - (known(s) - known(before))
	return max(0, used.Seconds()/s.at.Sub(before.at).Seconds()/float64(s.cpus))
}
