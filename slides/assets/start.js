Slides.start();
