// net/http on the address given. Each answer names the process.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "pid=%d\n", os.Getpid())
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
