StaticExplorers.mountAll();
