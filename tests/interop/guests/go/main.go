// A client and a server over AF_VSOCK, as a program in Go does that knows nothing of hvsock.
//
//	echo connect PORT   sends its standard input to the host, and prints what comes back
//	echo listen PORT    sends back what one connection sends
package main

import (
	"io"
	"log"
	"os"
	"strconv"

	"github.com/mdlayher/vsock"
)

func main() {
	port, err := strconv.ParseUint(os.Args[2], 10, 32)
	check(err)
	if os.Args[1] == "connect" {
		connect(uint32(port))
	} else {
		listen(uint32(port))
	}
}

func connect(port uint32) {
	connection, err := vsock.Dial(vsock.Host, port, nil)
	check(err)
	defer connection.Close()
	go func() {
		_, err := io.Copy(connection, os.Stdin)
		check(err)
		check(connection.CloseWrite())
	}()
	_, err = io.Copy(os.Stdout, connection)
	check(err)
}

func listen(port uint32) {
	listener, err := vsock.ListenContextID(0xffffffff, port, nil)
	check(err)
	defer listener.Close()
	connection, err := listener.Accept()
	check(err)
	defer connection.Close()
	_, err = io.Copy(connection, connection)
	check(err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
