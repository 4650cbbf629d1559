package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// idleTime is how long a system is left alone before it is looked at.
	idleTime = 10 * time.Second
	// quitTime is how long a program may take to print its goroutines.
	quitTime = 10 * time.Second
)

// idle shows what nodes cost that nobody uses: resident memory, and goroutines
// as their dump on SIGQUIT lists them, those of the runtime left out.
func idle(ctx context.Context, b *bench) error {
	systems, err := b.systems(ctx, &gears{members: members{b: b}, name: "one node", size: 1, network: "tcp"})
	if err != nil {
		return err
	}
	fmt.Printf("an idle node, %v after the start: resident MiB, goroutines\n", idleTime)
	for _, s := range systems {
		err := with(ctx, s, func() error {
			select {
			case <-time.After(idleTime):
			case <-ctx.Done():
				return ctx.Err()
			}
			fmt.Printf("%-20s", s)
			for _, n := range s.nodes() {
				rss, err := n.residentBytes()
				if err != nil {
					return err
				}
				goroutines, err := n.goroutines()
				if err != nil {
					return fmt.Errorf("%s: %w", n.name, err)
				}
				fmt.Printf("   %s: %5.1f MiB %4d", n.name, float64(rss)/(1<<20), goroutines)
			}
			fmt.Println()
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *process) residentBytes() (int, error) { return memoryBytes(p.pid(), "VmRSS") }

// memoryBytes is a field of proc(5)'s status that is in KiB.
func memoryBytes(pid int, field string) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")))
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no %s", field)
}

var goroutineLine = regexp.MustCompile(`(?m)^goroutine \d+ `)

// goroutines ends the program with SIGQUIT and counts what that prints.
func (p *process) goroutines() (int, error) {
	if err := p.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return 0, err
	}
	select {
	case <-p.exited:
	case <-time.After(quitTime):
		return 0, errors.New("it does not end on SIGQUIT")
	}
	text, err := os.ReadFile(p.log)
	if err != nil {
		return 0, err
	}
	n := len(goroutineLine.FindAll(text, -1))
	if n == 0 {
		return 0, errors.New("it printed no goroutines")
	}
	return n, nil
}
