package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/gearsfs/gearsfs/bench/load"
)

// respConn speaks RESP, the protocol of Redis.
type respConn struct{ *lineConn }

func dialRESP(ctx context.Context, addr string) (respConn, error) {
	c, err := dialLines(ctx, addr)
	return respConn{c}, err
}

// begin begins a command of n words.
func (c respConn) begin(n int) { c.count('*', n) }

func (c respConn) count(kind byte, n int) {
	c.out = append(c.out, kind)
	c.out = strconv.AppendInt(c.out, int64(n), 10)
	c.out = append(c.out, '\r', '\n')
}

// word adds a word to the command.
func (c respConn) word(word []byte) {
	c.count('$', len(word))
	c.out = append(c.out, word...)
	c.out = append(c.out, '\r', '\n')
}

// words adds words to the command.
func (c respConn) words(words ...string) {
	for _, word := range words {
		c.count('$', len(word))
		c.out = append(c.out, word...)
		c.out = append(c.out, '\r', '\n')
	}
}

// command adds a whole command.
func (c respConn) command(words ...string) {
	c.begin(len(words))
	c.words(words...)
}

// header reads what kind of reply comes, and its count: of bytes, of elements,
// or the integer. It is -1 for what is missing.
func (c respConn) header() (kind byte, n int, err error) {
	line, err := c.line()
	if err != nil {
		return 0, 0, err
	}
	if len(line) == 0 {
		return 0, 0, errors.New("a reply without a kind")
	}
	switch kind = line[0]; kind {
	case '-':
		return kind, 0, fmt.Errorf("redis: %s", line[1:])
	case '+':
		return kind, 0, nil
	case ':', '$', '*':
		n, err = strconv.Atoi(string(line[1:]))
		return kind, n, err
	}
	return kind, 0, fmt.Errorf("no kind of reply: %q", line)
}

// expect is header of a reply of one kind.
func (c respConn) expect(kind byte) (int, error) {
	got, n, err := c.header()
	if err == nil && got != kind {
		err = fmt.Errorf("a reply of kind %q where %q should be", got, kind)
	}
	return n, err
}

// bulk appends the next string to what is given; load.ErrEmpty where none is.
func (c respConn) bulk(to []byte) ([]byte, error) {
	n, err := c.expect('$')
	if err != nil {
		return nil, err
	}
	if n < 0 {
		return nil, load.ErrEmpty
	}
	return c.bytes(to, n)
}
