package main

import (
	"bufio"
	"net"
	"strings"
	"testing"

	"github.com/gearsfs/gearsfs/bench/load"
)

// scripted is a connection whose other side says what it is told to; sent
// returns what was sent to it.
func scripted(t *testing.T, says string) (c *lineConn, sent func() string) {
	t.Helper()
	ours, theirs := net.Pipe()
	got := make(chan string)
	go func() {
		buf := make([]byte, 4096)
		n, err := theirs.Read(buf)
		if err == nil {
			_, err = theirs.Write([]byte(says))
		}
		if err != nil {
			t.Error(err)
		}
		got <- string(buf[:n])
	}()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return &lineConn{conn: ours, r: bufio.NewReader(ours)}, func() string { return <-got }
}

func TestRedisStream(t *testing.T) {
	c, sent := scripted(t, strings.Join([]string{
		"*1", "*2", "$4", "jobs", "*2",
		"*2", "$3", "1-1", "*2", "$1", "d", "$5", "ab\r\nc",
		"*2", "$3", "1-2", "*2", "$1", "d", "$0", "", "",
	}, "\r\n"))
	taker := &redisStreamTaker{respConn: respConn{c}, name: "c1"}
	n, err := taker.Take(t.Context(), 2)
	if err != nil || n != 2 {
		t.Fatal(n, err)
	}
	if got := sent(); !strings.HasPrefix(got, "*11\r\n$10\r\nXREADGROUP\r\n") {
		t.Fatalf("%q", got)
	}
	if string(taker.ids[0]) != "1-1" || string(taker.ids[1]) != "1-2" || string(taker.data) != "jobsdab\r\ncd" {
		t.Fatalf("%q %q", taker.ids, taker.data)
	}
}

func TestRedisErrors(t *testing.T) {
	for _, says := range []string{"-NOGROUP no such group\r\n", "$-1\r\n", "?\r\n", ":x\r\n", "\r\n", "*1\r\n*2\r\n$99999999\r\n"} {
		c, sent := scripted(t, says)
		if _, err := (&redisStreamTaker{respConn: respConn{c}}).Take(t.Context(), 1); err == nil {
			t.Errorf("%q is no error", says)
		}
		sent()
	}
	c, sent := scripted(t, "$-1\r\n")
	if _, err := (&redisListTaker{respConn: respConn{c}}).Take(t.Context(), 1); err != load.ErrEmpty {
		t.Errorf("an empty list: %v", err)
	}
	sent()
}

func TestBeanstalk(t *testing.T) {
	c, sent := scripted(t, "DELETED\r\nRESERVED 8 3\r\nabc\r\n")
	taker := &beanstalkTaker{beanstalkConn: beanstalkConn{c}, id: []byte("7")}
	if err := taker.Chain(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if got := sent(); got != "delete 7\r\nreserve\r\n" {
		t.Fatalf("%q", got)
	}
	if string(taker.id) != "8" || string(taker.data) != "abc" {
		t.Fatalf("%q %q", taker.id, taker.data)
	}
	c, sent = scripted(t, "DEADLINE_SOON\r\n")
	if _, err := (&beanstalkTaker{beanstalkConn: beanstalkConn{c}}).Take(t.Context(), 1); err == nil {
		t.Fatal("no error")
	}
	sent()
}
